/* The operators of domain "compressor" for ONNX Runtime's CPU provider.
 *
 * | operator | inputs | attributes |
 * |---|---|---|
 * | RowSkipMatMul | X, W [K, N], T | |
 * | RowSkipMatMulInt8, RowSkipMatMulInt4 | X, W, scale, zero, T | N |
 * | SparseGatedMLP | X, G, up [H, K], down [H, N], T | |
 * | SparseGatedMLPInt8, SparseGatedMLPInt4 | X, G, up, scale, zero, down, scale, zero, T | N |
 *
 * Every operator also takes `dense_from`. README.md describes the layouts.
 */
#include "ort_abi.h"
#include "paths.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_RANK 16
#define CALL(api, index, type) ((type)(api)->slot[index])

enum kind { FLOATS, BYTES, NIBBLES };

typedef struct {
  OrtCustomOp op; /* first, so that the pointers are the same */
  const char *name;
  enum kind kind;
  int gated;
} operator;

typedef struct {
  const OrtApi *api;
  const operator *of;
  int64_t outputs, dense_from;
  atomic_int threads, products;
} kernel;

typedef struct {
  int type;
  size_t rank;
  int64_t dims[MAX_RANK];
  int64_t values; /* in all */
  void *data;
} tensor;

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static OrtStatus *refuse(const OrtApi *api, const char *format, ...) {
  char message[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return CALL(api, CREATE_STATUS, create_status_fn)(ORT_INVALID_ARGUMENT, message);
}

static OrtStatus *read_shape(const OrtApi *api, const OrtShape *shape, const char *name, size_t index, tensor *t) {
  OrtStatus *status = CALL(api, GET_TENSOR_ELEMENT_TYPE, get_type_fn)(shape, &t->type);
  if (!status) status = CALL(api, GET_DIMENSIONS_COUNT, get_rank_fn)(shape, &t->rank);
  if (status) return status;
  if (t->rank > MAX_RANK) return refuse(api, "%s: input %zu has more than %d dimensions", name, index, MAX_RANK);
  status = CALL(api, GET_DIMENSIONS, get_dims_fn)(shape, t->dims, t->rank);
  t->values = 1;
  for (size_t i = 0; i < t->rank; i++) t->values *= t->dims[i];
  return status;
}

static OrtStatus *read_input(const kernel *k, const OrtKernelContext *context, size_t index, tensor *t) {
  const OrtApi *api = k->api;
  const OrtValue *value = NULL;
  OrtShape *shape = NULL;
  OrtStatus *status = CALL(api, KERNEL_CONTEXT_GET_INPUT, get_input_fn)(context, index, &value);
  if (!status) status = CALL(api, GET_TENSOR_TYPE_AND_SHAPE, get_shape_fn)(value, &shape);
  if (status) return status;
  status = read_shape(api, shape, k->of->name, index, t);
  CALL(api, RELEASE_TENSOR_TYPE_AND_SHAPE_INFO, release_shape_fn)(shape);
  if (status) return status;
  return CALL(api, GET_TENSOR_MUTABLE_DATA, get_data_fn)((OrtValue *)value, &t->data);
}

static OrtStatus *float_matrix(const kernel *k, const tensor *w, ck_matrix *m) {
  if (w->rank != 2) return refuse(k->api, "%s: a weight has %zu dimensions, not 2", k->of->name, w->rank);
  if (w->type != ORT_FLOAT && w->type != ORT_FLOAT16 && w->type != ORT_BFLOAT16)
    return refuse(k->api, "%s: weights must be float, float16 or bfloat16", k->of->name);
  m->format = w->type == ORT_FLOAT ? CK_F32 : w->type == ORT_FLOAT16 ? CK_F16 : CK_BF16;
  m->rows = w->dims[0];
  m->cols = m->pitch = w->dims[1];
  m->data = w->data;
  return NULL;
}

/* Codes [rows, blocks, bytes of a block], scale [rows, blocks], zero [1] or [rows, blocks]. */
static OrtStatus *code_matrix(const kernel *k, const tensor *in, int64_t cols, ck_matrix *m) {
  const tensor *codes = in, *scale = in + 1, *zero = in + 2;
  const int nibbles = k->of->kind == NIBBLES;
  const int64_t wanted = (cols + CK_BLOCK - 1) / CK_BLOCK, whole = nibbles ? CK_BLOCK / 2 : CK_BLOCK;
  const char *name = k->of->name;
  if (codes->rank != 3 || scale->rank != 2) return refuse(k->api, "%s: codes need 3 dimensions, scales 2", name);
  const int64_t rows = codes->dims[0], blocks = codes->dims[1], bytes = codes->dims[2];
  const int one = !nibbles && blocks == 1 && bytes >= cols;
  if (!one && (blocks != wanted || bytes != whole))
    return refuse(k->api, "%s: codes [%lld, %lld, %lld] are not those of %lld columns in blocks of %d", name,
                  (long long)rows, (long long)blocks, (long long)bytes, (long long)cols, CK_BLOCK);
  if (scale->dims[0] != rows || scale->dims[1] != blocks)
    return refuse(k->api, "%s: scales must be [%lld, %lld]", name, (long long)rows, (long long)blocks);
  if (zero->values != 1 && (zero->rank != 2 || zero->dims[0] != rows || zero->dims[1] != blocks))
    return refuse(k->api, "%s: zero points must be [1] or [%lld, %lld]", name, (long long)rows, (long long)blocks);
  m->format = nibbles ? CK_U4 : CK_U8;
  m->rows = rows;
  m->cols = cols;
  m->pitch = blocks * bytes;
  m->blocks = blocks;
  m->one_zero = zero->values == 1;
  m->data = codes->data;
  m->scale = scale->data;
  m->zero = zero->data;
  return NULL;
}

static OrtStatus *matrix(const kernel *k, const tensor *in, int64_t cols, ck_matrix *m) {
  memset(m, 0, sizeof *m);
  return k->of->kind == FLOATS ? float_matrix(k, in, m) : code_matrix(k, in, cols, m);
}

/* What ParallelFor needs, behind ck_pool. */
typedef struct {
  const OrtApi *api;
  OrtKernelContext *context;
  OrtStatus *status;
} runner;

static void run_on_pool(void *self, void (*task)(void *, size_t), size_t total, void *argument) {
  runner *r = self;
  r->status = CALL(r->api, KERNEL_CONTEXT_PARALLEL_FOR, parallel_for_fn)(r->context, task, total, 0, argument);
  if (!r->status) return;
  CALL(r->api, RELEASE_STATUS, release_status_fn)(r->status);
  for (size_t i = 0; i < total; i++) task(argument, i);
}

static size_t inputs_of(const operator *o) { return (o->gated ? 3 : 2) + (o->kind == FLOATS ? 1 : 3) * (1 + o->gated); }

static OrtStatus *check_shapes(const kernel *k, const tensor *in, const ck_matrix *up, const ck_matrix *down,
                               int64_t tokens) {
  const int gated = k->of->gated;
  const char *name = k->of->name;
  const tensor *x = in, *g = in + 1, *t = in + inputs_of(k->of) - 1;
  const int64_t width = gated ? up->cols : down->rows;
  if (x->dims[x->rank - 1] != width)
    return refuse(k->api, "%s: X has width %lld, the weight %lld", name, (long long)x->dims[x->rank - 1],
                  (long long)width);
  if (gated && (up->rows != down->rows || g->rank < 1 || g->dims[g->rank - 1] != up->rows ||
                g->values != tokens * up->rows))
    return refuse(k->api, "%s: G, the up and the down weight differ in tokens or neurons", name);
  if (t->values != 1 && t->values != down->rows)
    return refuse(k->api, "%s: T needs 1 or %lld thresholds, not %lld", name, (long long)down->rows,
                  (long long)t->values);
  return NULL;
}

static OrtStatus *multiply(kernel *k, OrtKernelContext *context, const tensor *in, const ck_matrix *up,
                           const ck_matrix *down, int64_t tokens) {
  const OrtApi *api = k->api;
  int64_t dims[MAX_RANK];
  void *y = NULL;
  OrtValue *output = NULL;
  memcpy(dims, in->dims, sizeof dims);
  dims[in->rank - 1] = down->cols;
  OrtStatus *status = CALL(api, KERNEL_CONTEXT_GET_OUTPUT, get_output_fn)(context, 0, dims, in->rank, &output);
  if (!status) status = CALL(api, GET_TENSOR_MUTABLE_DATA, get_data_fn)(output, &y);
  if (status) return status;
  const tensor *t = in + inputs_of(k->of) - 1;
  int threads = atomic_load(&k->threads), products = atomic_load(&k->products), result;
  runner r = {api, context, NULL};
  const ck_pool pool = {run_on_pool, &r, &threads, &products};
  if (k->of->gated)
    result = ck_gated_mlp(up, down, in[0].data, in[1].data, tokens, t->data, t->values, k->dense_from, &pool, y);
  else
    result = ck_row_skip(down, in[0].data, tokens, t->data, t->values, k->dense_from, &pool, y);
  atomic_store(&k->threads, threads);
  atomic_store(&k->products, products);
  if (result == CK_NO_MEMORY) return CALL(api, CREATE_STATUS, create_status_fn)(ORT_FAIL, "out of memory");
  return result == CK_OK ? NULL : refuse(api, "%s: shapes do not fit", k->of->name);
}

static OrtStatus *ORT_CALL compute(void *self, OrtKernelContext *context) {
  kernel *k = self;
  const operator *o = k->of;
  const size_t count = inputs_of(o), each = o->kind == FLOATS ? 1 : 3;
  tensor in[9];
  OrtStatus *status = NULL;
  for (size_t i = 0; i < count && !status; i++) status = read_input(k, context, i, &in[i]);
  if (status) return status;
  if (in->rank < 1) return refuse(k->api, "%s: X is a scalar", o->name);
  ck_matrix up = {0}, down;
  const tensor *weights = in + 1 + o->gated;
  if (o->gated) {
    status = matrix(k, weights, in->dims[in->rank - 1], &up);
    weights += each;
  }
  if (!status) status = matrix(k, weights, k->outputs, &down);
  if (status) return status;
  int64_t tokens = 1;
  for (size_t i = 0; i + 1 < in->rank; i++) tokens *= in->dims[i];
  status = check_shapes(k, in, &up, &down, tokens);
  return status ? status : multiply(k, context, in, &up, &down, tokens);
}

/* Reads an integer attribute; returns 0 where the node has none. */
static int read_attribute(const OrtApi *api, const OrtKernelInfo *info, const char *name, int64_t *value) {
  OrtStatus *status = CALL(api, KERNEL_INFO_GET_ATTRIBUTE_INT64, get_int_fn)(info, name, value);
  if (!status) return 1;
  CALL(api, RELEASE_STATUS, release_status_fn)(status);
  return 0;
}

static OrtStatus *ORT_CALL create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **made) {
  const operator *o = (const operator *)op;
  int64_t outputs = 0, dense_from = 0;
  read_attribute(api, info, "dense_from", &dense_from);
  if (o->kind != FLOATS && (!read_attribute(api, info, "N", &outputs) || outputs < 1))
    return refuse(api, "%s: attribute N, the number of outputs, is missing or not positive", o->name);
  if (dense_from < 0) return refuse(api, "%s: attribute dense_from is negative", o->name);
  kernel *k = calloc(1, sizeof *k);
  if (!k) return CALL(api, CREATE_STATUS, create_status_fn)(ORT_FAIL, "out of memory");
  k->api = api;
  k->of = o;
  k->outputs = outputs;
  k->dense_from = dense_from;
  if (dense_from == 0) ck_cost_of(o->kind == FLOATS ? CK_F32 : o->kind == BYTES ? CK_U8 : CK_U4, 0);
  *made = k;
  return NULL;
}

static void ORT_CALL destroy(void *self) { free(self); }

static const char *ORT_CALL name_of(const OrtCustomOp *op) { return ((const operator *)op)->name; }

static const char *ORT_CALL provider(const OrtCustomOp *op) {
  (void)op;
  return "CPUExecutionProvider";
}

static size_t ORT_CALL input_count(const OrtCustomOp *op) { return inputs_of((const operator *)op); }

static int ORT_CALL input_type(const OrtCustomOp *op, size_t index) {
  const operator *o = (const operator *)op;
  const size_t first = 1 + (size_t)o->gated;
  if (index < first || index + 1 == inputs_of(o)) return ORT_FLOAT;
  if (o->kind == FLOATS) return ORT_UNDEFINED; /* float, float16 or bfloat16; checked in float_matrix */
  return (index - first) % 3 == 1 ? ORT_FLOAT : ORT_UINT8;
}

static size_t ORT_CALL one(const OrtCustomOp *op) {
  (void)op;
  return 1;
}

static int ORT_CALL output_type(const OrtCustomOp *op, size_t index) {
  (void)op;
  (void)index;
  return ORT_FLOAT;
}

/* Characteristic "required" and memory type "default" are both 0. */
static int ORT_CALL plain(const OrtCustomOp *op, size_t index) {
  (void)op;
  (void)index;
  return 0;
}

static int ORT_CALL first_version(const OrtCustomOp *op) {
  (void)op;
  return 1;
}

static int ORT_CALL last_version(const OrtCustomOp *op) {
  (void)op;
  return INT32_MAX;
}

#define OPERATOR(NAME, KIND, GATED)                                                                         \
  {{.version = ORT_VERSION_USED, .GetName = name_of, .GetExecutionProviderType = provider,                  \
    .GetInputType = input_type, .GetInputTypeCount = input_count, .GetOutputType = output_type,             \
    .GetOutputTypeCount = one, .KernelDestroy = destroy, .GetInputCharacteristic = plain,                   \
    .GetOutputCharacteristic = plain, .GetInputMemoryType = plain, .GetVariadicInputMinArity = first_version, \
    .GetVariadicInputHomogeneity = first_version, .GetVariadicOutputMinArity = first_version,               \
    .GetVariadicOutputHomogeneity = first_version, .CreateKernelV2 = create, .KernelComputeV2 = compute,    \
    .GetStartVersion = first_version, .GetEndVersion = last_version},                                       \
   NAME, KIND, GATED}

static const operator operators[] = {
    OPERATOR("RowSkipMatMul", FLOATS, 0),      OPERATOR("RowSkipMatMulInt8", BYTES, 0),
    OPERATOR("RowSkipMatMulInt4", NIBBLES, 0), OPERATOR("SparseGatedMLP", FLOATS, 1),
    OPERATOR("SparseGatedMLPInt8", BYTES, 1),  OPERATOR("SparseGatedMLPInt4", NIBBLES, 1),
};

/* Makes the domain once; sessions share it for as long as the library is loaded. */
static OrtStatus *domain_of(const OrtApi *api, OrtCustomOpDomain **domain) {
  static OrtCustomOpDomain *made;
  static atomic_flag busy = ATOMIC_FLAG_INIT;
  OrtStatus *status = NULL;
  while (atomic_flag_test_and_set(&busy)) continue;
  if (!made) {
    OrtCustomOpDomain *fresh = NULL;
    status = CALL(api, CREATE_CUSTOM_OP_DOMAIN, create_domain_fn)("compressor", &fresh);
    for (size_t i = 0; i < sizeof operators / sizeof *operators && !status; i++)
      status = CALL(api, CUSTOM_OP_DOMAIN_ADD, domain_add_fn)(fresh, &operators[i].op);
    if (!status) made = fresh;
  }
  *domain = made;
  atomic_flag_clear(&busy);
  return status;
}

CK_EXPORT OrtStatus *ORT_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  const OrtApi *api = base->GetApi(ORT_VERSION_USED);
  if (!api) {
    /* Every version of ONNX Runtime has the first interface, and CreateStatus in its first slot. */
    const OrtApi *oldest = base->GetApi(1);
    if (!oldest) abort();
    return refuse(oldest, "compressor-kernels needs ONNX Runtime 1.17 or newer, this is %s", base->GetVersionString());
  }
  const char *path = getenv("COMPRESSOR_KERNELS_PATH");
  if (path && ck_select_path(path) != CK_OK)
    return refuse(api, "COMPRESSOR_KERNELS_PATH=%s: this processor has no such path; unset it, or use portable", path);
  OrtCustomOpDomain *domain = NULL;
  OrtStatus *status = domain_of(api, &domain);
  return status ? status : CALL(api, ADD_CUSTOM_OP_DOMAIN, add_domain_fn)(options, domain);
}
