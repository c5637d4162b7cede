/* Vectors of 16 floats: AVX-512 F, BW, DQ, VL. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VL 16
typedef __m512 vf;
typedef __m512i vi;

static inline vf vf_zero(void) { return _mm512_setzero_ps(); }
static inline vf vf_set1(float a) { return _mm512_set1_ps(a); }
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_from_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline vf vf_from_bf16(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline vi vi_set1(int a) { return _mm512_set1_epi32(a); }
static inline vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
/* Sixteen bytes, less a zero point. */
static inline vf vf_from_u8(const uint8_t *p, vi zero) {
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)), zero));
}
/* Code i of the eight in each word: as it stands there, code * 16^i, but the last one as it is. No shifts are needed,
 * and powers of two cost no precision. */
static inline vf vf_code(vi words, int i) {
  if (i == 7) return _mm512_cvtepi32_ps(_mm512_srli_epi32(words, 28));
  return _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(15 << 4 * i)));
}
/* Each of VL / 4 values, four times. */
static inline vf vf_spread(const float *p) {
  const __m512i each = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  return _mm512_permutexvar_ps(each, _mm512_castps128_ps512(_mm_loadu_ps(p)));
}
static inline float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
