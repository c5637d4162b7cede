/* The table that one instruction set fills in, and what all of them share. */
#ifndef COMPRESSOR_KERNELS_PATHS_H
#define COMPRESSOR_KERNELS_PATHS_H

#include "compressor_kernels.h"

#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#define CK_HAS_X86
#elif defined(__aarch64__) || defined(_M_ARM64)
#define CK_HAS_NEON
#endif

/* Columns handed to different threads begin at multiples of this. */
#define CK_COLUMNS 128
/* Columns of one block of a quantized row. */
#define CK_BLOCK 32

/* Adds coef[i] * w[rows[i]] up, into y[from..to); `from` is a multiple of CK_COLUMNS. `scratch` has room for w.cols
 * floats rounded up to CK_COLUMNS and is touched in the same columns alone. */
typedef void ck_add_rows(const ck_matrix *w, const int32_t *rows, const float *coef, int64_t count, int64_t from,
                         int64_t to, float *scratch, float *y);

/* out[i] = w[rows[i]] . x; x as `arrange` left it for CK_U4. */
typedef void ck_meet_rows(const ck_matrix *w, const int32_t *rows, int64_t count, const float *x, float *out);

/* y[tokens, from..to) (row length w.cols) = a [tokens, count] . w[rows]; 0 if memory ran out. */
typedef int ck_dense_add(const ck_matrix *w, const int32_t *rows, int64_t count, const float *a, int64_t tokens,
                         int64_t from, int64_t to, float *y);

/* out[tokens, from..to) (row length `count`) = x [tokens, w.cols] . w[rows[from..to)]^T */
typedef void ck_dense_meet(const ck_matrix *w, const int32_t *rows, int64_t count, const float *x, int64_t tokens,
                          int64_t from, int64_t to, float *out);

typedef struct ck_path_table {
  const char *name;
  ck_add_rows *add_rows[CK_FORMATS];
  ck_meet_rows *meet_rows[CK_FORMATS];
  /* Floats that an arranged input of n values takes, and the arranging, for CK_U4. */
  int64_t (*arranged)(int64_t n);
  void (*arrange)(const float *x, int64_t n, float *out);
  ck_dense_add *dense_add;
  ck_dense_meet *dense_meet;
} ck_path_table;

extern const ck_path_table ck_portable, ck_avx2, ck_avx512, ck_neon;

/* The path in use. */
const ck_path_table *ck_current(void);

typedef struct ck_cost {
  double loop, read, token;
} ck_cost;

/* Measures on first use. kind 0: add, 1: meet. */
ck_cost ck_cost_of(int64_t format, int kind);

/* Runs `task` for pieces of `units` units of work, `align` units at least each; see threads.c. */
void ck_spread(const ck_pool *pool, int64_t units, int64_t align,
               void (*task)(void *argument, int64_t from, int64_t to), void *argument);

static inline float ck_from_f16(uint16_t h) {
  union {
    uint32_t u;
    float f;
  } bits, scale;
  bits.u = (uint32_t)(h & 0x7fffu) << 13;
  scale.u = 0x77800000u; /* 2^112: the difference between the biases of the exponents; exact for subnormals, too */
  bits.f *= scale.f;
  if ((h & 0x7c00u) == 0x7c00u) bits.u |= 0x7f800000u;
  bits.u |= (uint32_t)(h & 0x8000u) << 16;
  return bits.f;
}

static inline float ck_from_bf16(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

static inline float ck_from_f32(float f) { return f; }

#endif
