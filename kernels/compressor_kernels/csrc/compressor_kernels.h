/* Products that never read the weight rows of silent neurons: the plain C interface.
 *
 * A matrix is stored row by row, and a row is one contiguous piece in every format (README.md, "Layouts"). An input is
 * silent where |x| <= threshold; NaN is not silent. Everything is accumulated in float.
 */
#ifndef COMPRESSOR_KERNELS_H
#define COMPRESSOR_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define CK_EXPORT __declspec(dllexport)
#elif defined(__GNUC__)
#define CK_EXPORT __attribute__((visibility("default")))
#else
#define CK_EXPORT
#endif

enum ck_format { CK_F32, CK_F16, CK_BF16, CK_U8, CK_U4, CK_FORMATS };

enum ck_result { CK_OK = 0, CK_NO_MEMORY = 1, CK_BAD_ARGUMENT = 2, CK_NO_SUCH_PATH = 3 };

/* A matrix [rows, cols]. Quantized: value = (code - zero) * scale, in blocks along a row. */
typedef struct ck_matrix {
  int64_t format;       /* enum ck_format */
  int64_t rows, cols;
  int64_t pitch;        /* from row to row: elements of a float format, bytes of a quantized one */
  int64_t blocks;       /* quantized: scales per row: 1 (CK_U8 only) or one for each 32 columns begun */
  int64_t one_zero;     /* quantized: whether `zero` is one value for the whole matrix */
  const void *data;
  const float *scale;   /* quantized: [rows, blocks] */
  const uint8_t *zero;  /* quantized: [1] or [rows, blocks] */
} ck_matrix;

/* Who runs the pieces of one product: calls task(argument, i) for every i < total, in any order, on any threads. */
typedef struct ck_pool {
  void (*run)(void *self, void (*task)(void *, size_t), size_t total, void *argument);
  void *self;
  int *threads;         /* how many threads were seen at work so far (0 at first); kept between products */
  int *products;        /* how many products this pool has run; kept between products */
} ck_pool;

/* y [tokens, w.cols] = (x where |x| is above the threshold, else 0) [tokens, w.rows] . w
 *
 * thresholds: one for all inputs (threshold_count 1) or one per input (threshold_count w.rows).
 * dense_from: from so many tokens on the dense path is taken; 0: decided by what was measured on this machine.
 * pool: NULL runs in the calling thread.
 */
CK_EXPORT int ck_row_skip(const ck_matrix *w, const float *x, int64_t tokens, const float *thresholds,
                          int64_t threshold_count, int64_t dense_from, const ck_pool *pool, float *y);

/* y [tokens, down.cols] = sum over h with |g_h| above the threshold of g_h * (up_h . x) * down_h
 *
 * x [tokens, up.cols]; g [tokens, up.rows], the gate activations; up.rows == down.rows.
 */
CK_EXPORT int ck_gated_mlp(const ck_matrix *up, const ck_matrix *down, const float *x, const float *g, int64_t tokens,
                           const float *thresholds, int64_t threshold_count, int64_t dense_from, const ck_pool *pool,
                           float *y);

/* Names the code path in use: "avx512", "avx2", "neon" or "portable". */
CK_EXPORT const char *ck_path(void);

/* Uses the named path from now on; NULL or "" takes the best one that this processor has. */
CK_EXPORT int ck_select_path(const char *name);

/* Returns the code path of index i (best first), or NULL behind the last; *usable tells if this processor has it. */
CK_EXPORT const char *ck_path_name(int i, int *usable);

/* Seconds per weight, as measured on this machine: of reading and using it once (loop), and on the dense path for
 * reading it (read) and for each token (token). kind 0: rows are added up; kind 1: rows meet an input. */
CK_EXPORT int ck_costs(int64_t format, int kind, double *loop, double *read, double *token);

#endif
