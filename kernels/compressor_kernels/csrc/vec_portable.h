/* Vectors of 4 floats in plain C. GCC and Clang have vectors in the language; others unroll the loops by themselves. */
#include <stdint.h>
#include <string.h>

#define VL 4

#if defined(__GNUC__) && !defined(CK_PLAIN_C)

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vw __attribute__((vector_size(16)));
typedef uint16_t vh __attribute__((vector_size(8)));
typedef uint8_t vb __attribute__((vector_size(4)));

static inline vf vf_set1(float a) { return (vf){a, a, a, a}; }
static inline vf vf_zero(void) { return vf_set1(0); }
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
static inline vi vi_set1(int a) { return (vi){a, a, a, a}; }
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
static inline vf vf_nibble(vi words, int i) {
  return __builtin_convertvector((vi)(((vw)words >> (4 * i)) & 15u), vf);
}
static inline vf vf_spread(const float *p) { return vf_set1(*p); }
static inline float vf_sum(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }

#else

#include "paths.h"

typedef struct {
  float v[VL];
} vf;
typedef struct {
  uint32_t v[VL];
} vi;

#define EACH for (int j = 0; j < VL; j++)
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
static inline vf vf_nibble(vi words, int i) { vf r; EACH r.v[j] = (float)((words.v[j] >> (4 * i)) & 15u); return r; }
static inline vf vf_spread(const float *p) { return vf_set1(*p); }
static inline float vf_sum(vf a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
#undef EACH

#endif
