/* Rows of CK_U4: blocks of 32 codes in 16 bytes, the even one of each pair in the low four bits.
 *
 * A vector of words holds GROUP codes, and taking four bits out of each word at a time gives them in another order than
 * they are stored in: code 8 * l + i is lane l of the i-th vector, times 16^i (vf_code). So the other factor, or the
 * sum, is brought into that order and scale once, instead of every weight into its own. Codes are used as they are, and
 * the zero point is taken off the sum of a block: sum (q - z) x = sum q x - z sum x.
 */

/* The eight vectors of a group and the sum of each lane over them. */
#define ARRANGED (9 * VL)
/* Rows whose sums stay in registers before they go back to memory. */
#define NIBBLE_ROWS 8

/* What vf_code has multiplied code i by. */
static const float code_scale[8] = {1, 16, 256, 4096, 65536, 1048576, 16777216, 1};

static int64_t arranged(int64_t n) { return (n + GROUP - 1) / GROUP * ARRANGED; }

static void arrange(const float *x, int64_t n, float *out) {
  for (int64_t at = 0; at < n; at += GROUP, out += ARRANGED) {
    float *sums = out + 8 * VL;
    for (int l = 0; l < VL; l++) {
      sums[l] = 0;
      for (int i = 0; i < 8; i++) {
        const int64_t k = at + 8 * l + i;
        const float value = k < n ? x[k] : 0;
        out[i * VL + l] = value / code_scale[i];
        sums[l] += value;
      }
    }
  }
}

/* One group of a row: words, scales and zero points, of which each lane has its own. */
typedef struct {
  vi words;
  vf scale, zero;
} group;

static ALWAYS group whole_group(const ck_matrix *w, const uint8_t *row, const grid *g, vf zero, int64_t block) {
  group made;
  made.words = vi_load(row + block * (CK_BLOCK / 2));
  made.scale = vf_spread(g->scale + block);
  made.zero = zero;
  if (!w->one_zero) {
    float each[GROUP_BLOCKS];
    for (int b = 0; b < GROUP_BLOCKS; b++) each[b] = g->zero[block + b];
    made.zero = vf_spread(each);
  }
  return made;
}

/* The blocks left at a row's end, where they fill no group: the rest has scale 0. */
static group last_group(const ck_matrix *w, const uint8_t *row, const grid *g, int64_t block) {
  uint8_t codes[VL * 4] = {0}, zeros[GROUP_BLOCKS] = {0};
  float scales[GROUP_BLOCKS] = {0}, each[GROUP_BLOCKS];
  const int64_t left = w->blocks - block;
  memcpy(codes, row + block * (CK_BLOCK / 2), (size_t)left * (CK_BLOCK / 2));
  memcpy(scales, g->scale + block, (size_t)left * sizeof *scales);
  for (int b = 0; b < left; b++) zeros[b] = w->one_zero ? *g->zero : g->zero[block + b];
  for (int b = 0; b < GROUP_BLOCKS; b++) each[b] = zeros[b];
  group made;
  made.words = vi_load(codes);
  made.scale = vf_spread(scales);
  made.zero = vf_spread(each);
  return made;
}

/* Adds one group of `some` rows, from column n on; `whole` is known when this is compiled. */
static ALWAYS void add_group_u4(int whole, const ck_matrix *w, const uint8_t *const *row, const uint8_t *const *ahead,
                                const grid *g, const float *coef, int some, vf zero, int64_t n, float *sums) {
  vf sum[8], less = vf_zero();
  UNROLLED for (int i = 0; i < 8; i++) sum[i] = vf_load(sums + n + i * VL);
  for (int r = 0; r < some; r++) {
    PREFETCH(ahead[r] + n / 2);
    PREFETCH(g[r].ahead + n / CK_BLOCK);
    const group codes = whole ? whole_group(w, row[r], &g[r], zero, n / CK_BLOCK)
                              : last_group(w, row[r], &g[r], n / CK_BLOCK);
    const vf c = vf_mul(codes.scale, vf_set1(coef[r]));
    less = vf_fma(c, codes.zero, less);
    UNROLLED for (int i = 0; i < 8; i++) sum[i] = vf_fma(vf_code(codes.words, i), c, sum[i]);
  }
  UNROLLED for (int i = 0; i < 8; i++) {
    vf_store(sums + n + i * VL, vf_sub(sum[i], vf_mul(less, vf_set1(code_scale[i]))));
  }
}

static void add_rows_u4(const ck_matrix *w, const int32_t *rows, const float *coef, int64_t count, int64_t from,
                        int64_t to, float *scratch, float *y) {
  const vf zero = vf_set1(w->one_zero ? *w->zero : 0);
  const int64_t end = from + (to - from + GROUP - 1) / GROUP * GROUP;
  memset(scratch + from, 0, (size_t)(end - from) * sizeof *scratch);
  for (int64_t at = 0; at < count; at += NIBBLE_ROWS) {
    const uint8_t *row[NIBBLE_ROWS], *ahead[NIBBLE_ROWS];
    grid g[NIBBLE_ROWS];
    const int some = count - at < NIBBLE_ROWS ? (int)(count - at) : NIBBLE_ROWS;
    for (int r = 0; r < some; r++) {
      const int32_t next = rows[later(at, some, r, count)];
      row[r] = (const uint8_t *)w->data + rows[at + r] * w->pitch;
      ahead[r] = (const uint8_t *)w->data + next * w->pitch;
      g[r] = grid_of(w, rows[at + r], next);
    }
    int64_t n = from;
    for (; n < to && n / CK_BLOCK + GROUP_BLOCKS <= w->blocks; n += GROUP)
      add_group_u4(1, w, row, ahead, g, coef + at, some, zero, n, scratch);
    if (n < to) add_group_u4(0, w, row, ahead, g, coef + at, some, zero, n, scratch);
  }
  for (int64_t n = from; n < to; n += GROUP)
    for (int l = 0; l < VL; l++)
      for (int i = 0; i < 8; i++)
        if (n + 8 * l + i < to) y[n + 8 * l + i] = scratch[n + i * VL + l] / code_scale[i];
}

/* The product of one group of a row with its arranged input, lane by lane. */
static ALWAYS vf meet_group_u4(group codes, const float *x) {
  vf part = vf_mul(vf_code(codes.words, 0), vf_load(x));
  UNROLLED for (int i = 1; i < 8; i++) part = vf_fma(vf_code(codes.words, i), vf_load(x + i * VL), part);
  return vf_sub(part, vf_mul(codes.zero, vf_load(x + 8 * VL)));
}

static ALWAYS void meet_some_u4(int R, const ck_matrix *w, const int32_t *rows, int64_t at, int64_t count,
                                const float *x, float *out) {
  TAKE_ROWS(uint8_t, R, at)
  grid g[ROWS];
  vf sum[ROWS];
  const vf zero = vf_set1(w->one_zero ? *w->zero : 0);
  UNROLLED for (int r = 0; r < R; r++) {
    g[r] = grid_of(w, rows[at + r], rows[later(at, R, r, count)]);
    sum[r] = vf_zero();
  }
  int64_t k = 0;
  for (; k < w->cols && k / CK_BLOCK + GROUP_BLOCKS <= w->blocks; k += GROUP, x += ARRANGED) {
    UNROLLED for (int r = 0; r < R; r++) {
      PREFETCH(ahead[r] + k / 2);
      PREFETCH(g[r].ahead + k / CK_BLOCK);
      const group codes = whole_group(w, row[r], &g[r], zero, k / CK_BLOCK);
      sum[r] = vf_fma(meet_group_u4(codes, x), codes.scale, sum[r]);
    }
  }
  for (int r = 0; k < w->cols && r < R; r++) {
    const group codes = last_group(w, row[r], &g[r], k / CK_BLOCK);
    sum[r] = vf_fma(meet_group_u4(codes, x), codes.scale, sum[r]);
  }
  UNROLLED for (int r = 0; r < R; r++) out[at + r] = vf_sum(sum[r]);
}

static void meet_rows_u4(const ck_matrix *w, const int32_t *rows, int64_t count, const float *x, float *out) {
  int64_t at = 0;
  for (; at + ROWS <= count; at += ROWS) meet_some_u4(ROWS, w, rows, at, count, x, out);
  for (; at < count; at++) meet_some_u4(1, w, rows, at, count, x, out);
}

/* out = w[row, from..to) as floats; `from` is a multiple of CK_BLOCK. */
static void expand_u4(const ck_matrix *w, int64_t row, int64_t from, int64_t to, float *out) {
  const uint8_t *codes = (const uint8_t *)w->data + row * w->pitch;
  const grid g = grid_of(w, row, row);
  const int64_t zero_step = w->one_zero ? 0 : 1;
  for (int64_t n = from; n < to; n += CK_BLOCK) {
    const int64_t block = n / CK_BLOCK, width = to - n < CK_BLOCK ? to - n : CK_BLOCK;
    const float scale = g.scale[block];
    const int zero = g.zero[block * zero_step];
    float values[CK_BLOCK];
    for (int j = 0; j < CK_BLOCK / 2; j++) {
      const int pair = codes[block * (CK_BLOCK / 2) + j];
      values[2 * j] = (float)((pair & 15) - zero) * scale;
      values[2 * j + 1] = (float)((pair >> 4) - zero) * scale;
    }
    memcpy(out + (n - from), values, (size_t)width * sizeof *values);
  }
}
