/* The kernels of one instruction set, in terms of its vectors (vec_*.h). Included once by each path_*.c. */
#include "paths.h"

#include <stdlib.h>

#if defined(__GNUC__)
#define UNROLLED _Pragma("GCC unroll 16")
#define ALWAYS inline __attribute__((always_inline))
#define PREFETCH(p) __builtin_prefetch((p), 0, 3)
#else
#define UNROLLED
#define ALWAYS __forceinline
#define PREFETCH(p) ((void)(p))
#endif

/* Columns of one turn of the loops over floats and bytes: a block of CK_U8. */
#define STEP CK_BLOCK
#define PARTS (STEP / VL)
/* Rows that are worked on together: an input or a sum stays in registers for all of them. */
#define ROWS 4
/* Columns of one turn for CK_U4: each 32-bit word of a vector holds eight codes. */
#define GROUP (VL * 8)
#define GROUP_BLOCKS (VL / 4)

/* Where in a list the row is that comes `some` after row at + r, or the last one. */
static inline int64_t later(int64_t at, int some, int r, int64_t count) {
  return at + some + r < count ? at + some + r : count - 1;
}

/* Rows `at`.. of a list, and those that come next, whose memory is asked for ahead of time. */
#define TAKE_ROWS(TYPE, R, AT)                                                           \
  const TYPE *row[ROWS], *ahead[ROWS];                                                   \
  UNROLLED for (int r = 0; r < (R); r++) {                                               \
    row[r] = (const TYPE *)w->data + rows[(AT) + r] * w->pitch;                          \
    ahead[r] = (const TYPE *)w->data + rows[later((AT), (R), r, count)] * w->pitch;      \
  }

#define NAME(x) x##_f32
#define TYPE float
#define LOAD vf_load
#define SCALAR ck_from_f32
#include "floats.h"

#define NAME(x) x##_f16
#define TYPE uint16_t
#define LOAD vf_from_f16
#define SCALAR ck_from_f16
#include "floats.h"

#define NAME(x) x##_bf16
#define TYPE uint16_t
#define LOAD vf_from_bf16
#define SCALAR ck_from_bf16
#include "floats.h"

#include "bytes.h"
#include "nibbles.h"
#include "dense.h"

const ck_path_table PATH_TABLE = {
    PATH_NAME,
    {add_rows_f32, add_rows_f16, add_rows_bf16, add_rows_u8, add_rows_u4},
    {meet_rows_f32, meet_rows_f16, meet_rows_bf16, meet_rows_u8, meet_rows_u4},
    arranged,
    arrange,
    dense_add,
    dense_meet,
};
