/* The part of ONNX Runtime's C interface that our operators call; its wheel has the library but no headers.
 *
 * Of its first version, whose order never changes, and the description of an operator as of version 17. */
#ifndef DLEN_ONNXRUNTIME_ABI_H
#define DLEN_ONNXRUNTIME_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION_USED 17

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtShapeInferContext OrtShapeInferContext;
struct OrtCustomOp;

enum { ORT_INVALID_ARGUMENT = 2, ORT_RUNTIME_EXCEPTION = 6 };
enum { TENSOR_FLOAT = 1, TENSOR_UINT8 = 2, TENSOR_INT8 = 3, TENSOR_INT32 = 6, TENSOR_INT64 = 7 };
enum { INPUT_REQUIRED = 0, INPUT_OPTIONAL = 1 };

/* Entries by their place in the table; those between are not called. */
typedef struct OrtApi {
    OrtStatus *(*CreateStatus)(int code, const char *message);
    void *not_called_1[25];
    OrtStatus *(*CreateCustomOpDomain)(const char *domain, OrtCustomOpDomain **out); /* 26 */
    OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const struct OrtCustomOp *op);
    OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain);
    void *not_called_29[22];
    OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **out); /* 51 */
    void *not_called_52[12];
    OrtStatus *(*GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo *info, size_t *out); /* 64 */
    OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorTypeAndShapeInfo **out);
    void *not_called_66[22];
    OrtStatus *(*KernelContext_GetInputCount)(const OrtKernelContext *context, size_t *out); /* 88 */
    void *not_called_89[1];
    OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, size_t index, const OrtValue **out); /* 90 */
    OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *context, size_t index, const int64_t *sizes, size_t rank,
                                          OrtValue **out);
    void *not_called_92[1];
    void (*ReleaseStatus)(OrtStatus *status); /* 93 */
    void *not_called_94[5];
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *info); /* 99 */
} OrtApi;

_Static_assert(offsetof(OrtApi, CreateCustomOpDomain) == 26 * sizeof(void *), "place 26");
_Static_assert(offsetof(OrtApi, GetTensorMutableData) == 51 * sizeof(void *), "place 51");
_Static_assert(offsetof(OrtApi, GetTensorShapeElementCount) == 64 * sizeof(void *), "place 64");
_Static_assert(offsetof(OrtApi, KernelContext_GetInputCount) == 88 * sizeof(void *), "place 88");
_Static_assert(offsetof(OrtApi, KernelContext_GetInput) == 90 * sizeof(void *), "place 90");
_Static_assert(offsetof(OrtApi, ReleaseTensorTypeAndShapeInfo) == 99 * sizeof(void *), "place 99");

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

typedef struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const struct OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info);
    const char *(*GetName)(const struct OrtCustomOp *op);
    const char *(*GetExecutionProviderType)(const struct OrtCustomOp *op);
    int (*GetInputType)(const struct OrtCustomOp *op, size_t index);
    size_t (*GetInputTypeCount)(const struct OrtCustomOp *op);
    int (*GetOutputType)(const struct OrtCustomOp *op, size_t index);
    size_t (*GetOutputTypeCount)(const struct OrtCustomOp *op);
    void (*KernelCompute)(void *kernel, OrtKernelContext *context);
    void (*KernelDestroy)(void *kernel);
    int (*GetInputCharacteristic)(const struct OrtCustomOp *op, size_t index);
    int (*GetOutputCharacteristic)(const struct OrtCustomOp *op, size_t index);
    int (*GetInputMemoryType)(const struct OrtCustomOp *op, size_t index);
    int (*GetVariadicInputMinArity)(const struct OrtCustomOp *op);
    int (*GetVariadicInputHomogeneity)(const struct OrtCustomOp *op);
    int (*GetVariadicOutputMinArity)(const struct OrtCustomOp *op);
    int (*GetVariadicOutputHomogeneity)(const struct OrtCustomOp *op);
    OrtStatus *(*CreateKernelV2)(const struct OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                                 void **kernel);
    OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
    OrtStatus *(*InferOutputShapeFn)(const struct OrtCustomOp *op, OrtShapeInferContext *context);
    int (*GetStartVersion)(const struct OrtCustomOp *op);
    int (*GetEndVersion)(const struct OrtCustomOp *op);
} OrtCustomOp;

#endif
