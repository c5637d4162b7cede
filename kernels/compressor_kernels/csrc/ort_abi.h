/* The few facts of ONNX Runtime's C interface that ort.c relies on.
 *
 * ONNX Runtime's headers are in none of its Python or npm packages. Its table of functions only ever grows at the end,
 * so a slot keeps its meaning; version 17 of the interface (ONNX Runtime 1.17) has all that is used here.
 */
#ifndef COMPRESSOR_KERNELS_ORT_ABI_H
#define COMPRESSOR_KERNELS_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define ORT_CALL __stdcall
#else
#define ORT_CALL
#endif

#define ORT_VERSION_USED 17

enum ort_slot {
  CREATE_STATUS = 0,
  CREATE_CUSTOM_OP_DOMAIN = 26,
  CUSTOM_OP_DOMAIN_ADD = 27,
  ADD_CUSTOM_OP_DOMAIN = 28,
  GET_TENSOR_MUTABLE_DATA = 51,
  GET_TENSOR_ELEMENT_TYPE = 60,
  GET_DIMENSIONS_COUNT = 61,
  GET_DIMENSIONS = 62,
  GET_TENSOR_TYPE_AND_SHAPE = 65,
  KERNEL_INFO_GET_ATTRIBUTE_INT64 = 86,
  KERNEL_CONTEXT_GET_INPUT = 90,
  KERNEL_CONTEXT_GET_OUTPUT = 91,
  RELEASE_STATUS = 93,
  RELEASE_TENSOR_TYPE_AND_SHAPE_INFO = 99,
  KERNEL_CONTEXT_PARALLEL_FOR = 274,
  SLOTS
};

enum ort_error { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };

enum ort_type { ORT_UNDEFINED = 0, ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_FLOAT16 = 10, ORT_BFLOAT16 = 16 };

typedef struct OrtStatus OrtStatus;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtValue OrtValue;
typedef struct OrtShape OrtShape; /* OrtTensorTypeAndShapeInfo */
typedef struct OrtShapeInferContext OrtShapeInferContext;
typedef struct OrtCustomOp OrtCustomOp;

typedef struct OrtApi {
  void(ORT_CALL *slot[SLOTS])(void);
} OrtApi;

typedef struct OrtApiBase {
  const OrtApi *(ORT_CALL *GetApi)(uint32_t version);
  const char *(ORT_CALL *GetVersionString)(void);
} OrtApiBase;

struct OrtCustomOp {
  uint32_t version;
  void *(ORT_CALL *CreateKernel)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *);
  const char *(ORT_CALL *GetName)(const OrtCustomOp *);
  const char *(ORT_CALL *GetExecutionProviderType)(const OrtCustomOp *);
  int(ORT_CALL *GetInputType)(const OrtCustomOp *, size_t);
  size_t(ORT_CALL *GetInputTypeCount)(const OrtCustomOp *);
  int(ORT_CALL *GetOutputType)(const OrtCustomOp *, size_t);
  size_t(ORT_CALL *GetOutputTypeCount)(const OrtCustomOp *);
  void(ORT_CALL *KernelCompute)(void *, OrtKernelContext *);
  void(ORT_CALL *KernelDestroy)(void *);
  int(ORT_CALL *GetInputCharacteristic)(const OrtCustomOp *, size_t);
  int(ORT_CALL *GetOutputCharacteristic)(const OrtCustomOp *, size_t);
  int(ORT_CALL *GetInputMemoryType)(const OrtCustomOp *, size_t);
  int(ORT_CALL *GetVariadicInputMinArity)(const OrtCustomOp *);
  int(ORT_CALL *GetVariadicInputHomogeneity)(const OrtCustomOp *);
  int(ORT_CALL *GetVariadicOutputMinArity)(const OrtCustomOp *);
  int(ORT_CALL *GetVariadicOutputHomogeneity)(const OrtCustomOp *);
  OrtStatus *(ORT_CALL *CreateKernelV2)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *, void **);
  OrtStatus *(ORT_CALL *KernelComputeV2)(void *, OrtKernelContext *);
  OrtStatus *(ORT_CALL *InferOutputShapeFn)(const OrtCustomOp *, OrtShapeInferContext *);
  int(ORT_CALL *GetStartVersion)(const OrtCustomOp *);
  int(ORT_CALL *GetEndVersion)(const OrtCustomOp *);
};

/* The functions, by their types. */
typedef OrtStatus *(ORT_CALL *create_status_fn)(int, const char *);
typedef OrtStatus *(ORT_CALL *create_domain_fn)(const char *, OrtCustomOpDomain **);
typedef OrtStatus *(ORT_CALL *domain_add_fn)(OrtCustomOpDomain *, const OrtCustomOp *);
typedef OrtStatus *(ORT_CALL *add_domain_fn)(OrtSessionOptions *, OrtCustomOpDomain *);
typedef OrtStatus *(ORT_CALL *get_data_fn)(OrtValue *, void **);
typedef OrtStatus *(ORT_CALL *get_shape_fn)(const OrtValue *, OrtShape **);
typedef OrtStatus *(ORT_CALL *get_type_fn)(const OrtShape *, int *);
typedef OrtStatus *(ORT_CALL *get_rank_fn)(const OrtShape *, size_t *);
typedef OrtStatus *(ORT_CALL *get_dims_fn)(const OrtShape *, int64_t *, size_t);
typedef OrtStatus *(ORT_CALL *get_int_fn)(const OrtKernelInfo *, const char *, int64_t *);
typedef OrtStatus *(ORT_CALL *get_input_fn)(const OrtKernelContext *, size_t, const OrtValue **);
typedef OrtStatus *(ORT_CALL *get_output_fn)(OrtKernelContext *, size_t, const int64_t *, size_t, OrtValue **);
typedef void(ORT_CALL *release_status_fn)(OrtStatus *);
typedef void(ORT_CALL *release_shape_fn)(OrtShape *);
typedef OrtStatus *(ORT_CALL *parallel_for_fn)(const OrtKernelContext *, void (*)(void *, size_t), size_t, size_t,
                                               void *);

#endif
