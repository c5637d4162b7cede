/* Vectors of 4 floats: Advanced SIMD of every 64-bit Arm processor. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define VL 4
typedef float32x4_t vf;
typedef uint32x4_t vi;

static inline vf vf_zero(void) { return vdupq_n_f32(0); }
static inline vf vf_set1(float a) { return vdupq_n_f32(a); }
static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf a) { vst1q_f32(p, a); }
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_from_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline vf vf_from_bf16(const uint16_t *p) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
}
static inline vi vi_set1(int a) { return vdupq_n_u32((uint32_t)a); }
static inline vi vi_load(const void *p) { return vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)p)); }
/* Four bytes, less a zero point. */
static inline vf vf_from_u8(const uint8_t *p, vi zero) {
  uint32_t bytes;
  memcpy(&bytes, p, sizeof bytes);
  uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes)));
  return vcvtq_f32_s32(vreinterpretq_s32_u32(vsubq_u32(vmovl_u16(vget_low_u16(wide)), zero)));
}
/* Code i of the eight in each word: as it stands there, code * 16^i, but the last one as it is. No shifts are needed,
 * and powers of two cost no precision. */
static inline vf vf_code(vi words, int i) {
  if (i == 7) return vcvtq_f32_u32(vshrq_n_u32(words, 28));
  return vcvtq_f32_u32(vandq_u32(words, vdupq_n_u32(15u << 4 * i)));
}
/* Each of VL / 4 values, four times. */
static inline vf vf_spread(const float *p) { return vld1q_dup_f32(p); }
static inline float vf_sum(vf a) { return vaddvq_f32(a); }
