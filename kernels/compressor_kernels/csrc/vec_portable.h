/* Vectors in plain C: of 4 floats, or as wide as the compiler was told that the processor is (-march=native). GCC and
 * Clang have vectors in the language; others unroll the loops by themselves. */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX2__)
#define VL 8
#else
#define VL 4
#endif
#define EACH for (int j = 0; j < VL; j++)

#if defined(__GNUC__) && !defined(CK_PLAIN_C)

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vw __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));
typedef uint8_t vb __attribute__((vector_size(VL)));

static inline vf vf_zero(void) { return (vf){0}; }
static inline vf vf_set1(float a) { return a - vf_zero(); }
static inline vf vf_load(const float *p) {
  vf a;
  memcpy(&a, p, sizeof a);
  return a;
}
static inline void vf_store(float *p, vf a) { memcpy(p, &a, sizeof a); }
static inline vf vf_add(vf a, vf b) { return a + b; }
static inline vf vf_sub(vf a, vf b) { return a - b; }
static inline vf vf_mul(vf a, vf b) { return a * b; }
static inline vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
static inline vw vw_from_u16(const uint16_t *p) {
  vh h;
  memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, vw);
}
static inline vf vf_from_f16(const uint16_t *p) {
  vw h = vw_from_u16(p);
  vf scaled = (vf)((h & 0x7fffu) << 13) * vf_set1(0x1p112f);
  vw special = (vw)((h & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (vf)((vw)scaled | special | ((h & 0x8000u) << 16));
}
static inline vf vf_from_bf16(const uint16_t *p) { return (vf)(vw_from_u16(p) << 16); }
static inline vi vi_set1(int a) { return a - (vi){0}; }
static inline vi vi_load(const void *p) {
  vi a;
  memcpy(&a, p, sizeof a);
  return a;
}
static inline vf vf_from_u8(const uint8_t *p, vi zero) {
  vb b;
  memcpy(&b, p, sizeof b);
  return __builtin_convertvector(__builtin_convertvector(b, vi) - zero, vf);
}
/* Code i of the eight in each word: as it stands there, code * 16^i, but the last one as it is. No shifts are needed,
 * and powers of two cost no precision. */
static inline vf vf_code(vi words, int i) {
  if (i == 7) return __builtin_convertvector((vi)((vw)words >> 28), vf);
  return __builtin_convertvector(words & (15 << 4 * i), vf);
}
/* Each of VL / 4 values, four times. */
static inline vf vf_spread(const float *p) {
  vf a;
  EACH a[j] = p[j / 4];
  return a;
}
static inline float vf_sum(vf a) {
  float sum = a[0];
  for (int j = 1; j < VL; j++) sum += a[j];
  return sum;
}

#else

#include "paths.h"

typedef struct {
  float v[VL];
} vf;
typedef struct {
  uint32_t v[VL];
} vi;

static inline vf vf_set1(float a) { vf r; EACH r.v[j] = a; return r; }
static inline vf vf_zero(void) { return vf_set1(0); }
static inline vf vf_load(const float *p) { vf r; EACH r.v[j] = p[j]; return r; }
static inline void vf_store(float *p, vf a) { EACH p[j] = a.v[j]; }
static inline vf vf_add(vf a, vf b) { EACH a.v[j] += b.v[j]; return a; }
static inline vf vf_sub(vf a, vf b) { EACH a.v[j] -= b.v[j]; return a; }
static inline vf vf_mul(vf a, vf b) { EACH a.v[j] *= b.v[j]; return a; }
static inline vf vf_fma(vf a, vf b, vf c) { EACH c.v[j] += a.v[j] * b.v[j]; return c; }
static inline vf vf_from_f16(const uint16_t *p) { vf r; EACH r.v[j] = ck_from_f16(p[j]); return r; }
static inline vf vf_from_bf16(const uint16_t *p) { vf r; EACH r.v[j] = ck_from_bf16(p[j]); return r; }
static inline vi vi_set1(int a) { vi r; EACH r.v[j] = (uint32_t)a; return r; }
static inline vi vi_load(const void *p) { vi r; memcpy(&r, p, sizeof r); return r; }
static inline vf vf_from_u8(const uint8_t *p, vi zero) {
  vf r;
  EACH r.v[j] = (float)((int)p[j] - (int)zero.v[j]);
  return r;
}
static inline vf vf_code(vi words, int i) {
  vf r;
  EACH r.v[j] = i == 7 ? (float)(words.v[j] >> 28) : (float)(int32_t)(words.v[j] & (15u << 4 * i));
  return r;
}
static inline vf vf_spread(const float *p) { vf r; EACH r.v[j] = p[j / 4]; return r; }
static inline float vf_sum(vf a) {
  float sum = 0;
  EACH sum += a.v[j];
  return sum;
}

#endif
