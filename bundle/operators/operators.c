/* ONNX Runtime's view of the kernels: operators of the domain "dlen".
 *
 * Every size is checked against what the inputs hold before anything is read; what does not fit is an error of the run.
 * Weights are constants of the graph, packed at a kernel's first run. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"
#include "onnxruntime_abi.h"

#define DOMAIN "dlen"
#define MOST_INPUTS 7
#define MOST_SIZE (1 << 20) /* so that nine products of three stay within 64 bits */

typedef struct Operator Operator;

typedef struct {
    const Operator *operator;
    const OrtApi *api;
    pthread_mutex_t packing;
    int packed; /* read and written atomically */
    int64_t offset_in_share;
    ByteNetworks networks;
    Mixtures mixtures;
    ByteLinear linear;
    LatentHead head;
} Kernel;

typedef struct {
    const void *data;
    int64_t count; /* of elements; −1 where an optional input is not given */
} Input;

/* An operator and what ONNX Runtime asks about it. `open` takes the constants, at a kernel's first run. */
struct Operator {
    OrtCustomOp op;
    const char *name;
    int inputs, required, outputs;
    int input_types[MOST_INPUTS];
    int output_type;
    OrtStatus *(*open)(Kernel *kernel, const Input *inputs);
    OrtStatus *(*run)(Kernel *kernel, OrtKernelContext *context, const Input *inputs);
};

static const Operator *of(const OrtCustomOp *op) { return (const Operator *)op; }

static OrtStatus *refuse(const Kernel *kernel, const char *message) {
    return kernel->api->CreateStatus(ORT_INVALID_ARGUMENT, message);
}

static OrtStatus *misfit(const Kernel *kernel, const char *input, int64_t found, int64_t expected) {
    char message[160];
    snprintf(message, sizeof message, "%s: found %lld numbers, expected %lld", input, (long long)found, (long long)expected);
    return refuse(kernel, message);
}

static OrtStatus *no_memory(const Kernel *kernel) {
    return kernel->api->CreateStatus(ORT_RUNTIME_EXCEPTION, "out of memory");
}

static OrtStatus *read_input(const Kernel *kernel, const OrtKernelContext *context, size_t index, Input *input) {
    const OrtApi *api = kernel->api;
    const OrtValue *value = NULL;
    OrtTensorTypeAndShapeInfo *info = NULL;
    size_t count = 0;
    OrtStatus *status = api->KernelContext_GetInput(context, index, &value);
    *input = (Input){NULL, -1};
    if (status || !value)
        return status;
    if ((status = api->GetTensorTypeAndShape(value, &info)))
        return status;
    status = api->GetTensorShapeElementCount(info, &count);
    api->ReleaseTensorTypeAndShapeInfo(info);
    if (status)
        return status;
    input->count = (int64_t)count;
    return api->GetTensorMutableData((OrtValue *)value, (void **)&input->data);
}

static OrtStatus *write_output(const Kernel *kernel, OrtKernelContext *context, size_t index, const int64_t *sizes,
                               size_t rank, void **data) {
    OrtValue *value = NULL;
    OrtStatus *status = kernel->api->KernelContext_GetOutput(context, index, sizes, rank, &value);
    return status ? status : kernel->api->GetTensorMutableData(value, data);
}

/* Layouts are whole numbers in a fixed order, the widths of layers last. */
static OrtStatus *read_layout(const Kernel *kernel, const Input *layout, int before, int64_t *numbers, int *widths,
                              int *layers) {
    *layers = (int)layout->count - before - 1;
    if (layout->count < before + 1 || *layers > MAX_LAYERS)
        return misfit(kernel, "layout", layout->count, before + 2);
    for (int i = 0; i < layout->count; i++) {
        const int64_t number = ((const int64_t *)layout->data)[i];
        if (number < (i >= before) || number > MOST_SIZE)
            return refuse(kernel, "layout: a number is out of bounds");
        if (i < before)
            numbers[i] = number;
        else
            widths[i - before] = (int)number;
    }
    return NULL;
}

/* ---- ByteNetworks(x u8, layout [E, zero point, own input?, stride, offset, offset in share, K, H…], weights s8,
 * scales f32, biases s32, share f32?, at_least u8?) → u8 [N, E, H]
 *
 * With share, whose numbers are rounded, biases are those of later layers. */

static OrtStatus *open_networks(Kernel *kernel, const Input *in) {
    ByteNetworks *n = &kernel->networks;
    int64_t numbers[6];
    OrtStatus *status = read_layout(kernel, &in[1], 6, numbers, n->widths, &n->layers);
    if (status)
        return status;
    n->networks = (int)numbers[0];
    n->zero_point = (int)numbers[1];
    n->own_input = numbers[2] != 0;
    n->stride = numbers[3];
    n->offset = numbers[4];
    kernel->offset_in_share = numbers[5];
    uint64_t weights = 0;
    int64_t scales = 0;
    for (int l = 0; l < n->layers; l++) {
        weights += (uint64_t)n->networks * n->widths[l] * n->widths[l + 1];
        scales += n->networks * (int64_t)n->widths[l + 1];
    }
    if (n->layers < 1 || n->networks < 1 || n->zero_point > 255 || n->stride < 1 ||
        n->offset + (n->own_input ? n->networks : 1) * (int64_t)n->widths[0] > n->stride)
        return refuse(kernel, "layout: networks read beyond a row");
    if ((uint64_t)in[2].count != weights)
        return misfit(kernel, "weights", in[2].count, (int64_t)weights);
    if (in[3].count != scales)
        return misfit(kernel, "scales", in[3].count, scales);
    for (int64_t i = 0; i < scales; i++)
        if (!(((const float *)in[3].data)[i] >= 0))
            return refuse(kernel, "scales: found one that is no number from 0 on");
    return pack_byte_networks(n, in[2].data, in[3].data) ? NULL : no_memory(kernel);
}

static OrtStatus *run_networks(Kernel *kernel, OrtKernelContext *context, const Input *in) {
    const ByteNetworks *n = &kernel->networks;
    int64_t biases = 0, shares = n->networks * (int64_t)n->widths[1];
    for (int l = in[5].data ? 1 : 0; l < n->layers; l++)
        biases += n->networks * (int64_t)n->widths[l + 1];
    const int64_t rows = in[0].count / n->stride, at_least = n->networks * (int64_t)n->widths[0];
    if (in[0].count != rows * n->stride)
        return misfit(kernel, "x", in[0].count, rows * n->stride);
    if (in[4].count != biases)
        return misfit(kernel, "biases", in[4].count, biases);
    if (in[5].data && in[5].count < kernel->offset_in_share + shares)
        return misfit(kernel, "share", in[5].count, kernel->offset_in_share + shares);
    if (in[6].data && in[6].count != at_least)
        return misfit(kernel, "at_least", in[6].count, at_least);
    const int64_t sizes[] = {rows, n->networks, n->widths[n->layers]};
    void *y;
    OrtStatus *status = write_output(kernel, context, 0, sizes, 3, &y);
    if (status)
        return status;
    const float *share = in[5].data ? (const float *)in[5].data + kernel->offset_in_share : NULL;
    return run_byte_networks(n, rows, in[0].data, in[4].data, share, in[6].data, y) ? NULL : no_memory(kernel);
}

/* ---- Mixtures(shares f32, experts u8, layout [M, E, softmax?, outputs, H, tower widths…], weights f32?, biases f32?)
 * → f32 [N, outputs], without outputs [N, M·H] */

static OrtStatus *open_mixtures(Kernel *kernel, const Input *in) {
    Mixtures *m = &kernel->mixtures;
    int64_t numbers[4];
    OrtStatus *status = read_layout(kernel, &in[2], 4, numbers, m->widths, &m->layers);
    if (status)
        return status;
    m->mixtures = (int)numbers[0];
    m->experts = (int)numbers[1];
    m->softmax = numbers[2] != 0;
    m->outputs = (int)numbers[3];
    uint64_t weights = 0;
    int64_t biases = 0;
    for (int l = 0; l < m->layers; l++) {
        weights += (uint64_t)m->mixtures * m->widths[l] * m->widths[l + 1];
        biases += m->mixtures * (int64_t)m->widths[l + 1];
    }
    weights += (uint64_t)m->mixtures * m->widths[m->layers] * m->outputs;
    biases += m->outputs;
    if (m->mixtures < 1 || m->experts < 1 || (m->layers && m->outputs < 1))
        return refuse(kernel, "layout: no mixtures, experts or outputs");
    if (m->outputs && (uint64_t)in[3].count != weights)
        return misfit(kernel, "weights", in[3].count, (int64_t)weights);
    if (m->outputs && in[4].count != biases)
        return misfit(kernel, "biases", in[4].count, biases);
    return pack_mixtures(m, in[3].data, in[4].data) ? NULL : no_memory(kernel);
}

static OrtStatus *run_mixtures_of(Kernel *kernel, OrtKernelContext *context, const Input *in) {
    const Mixtures *m = &kernel->mixtures;
    const int64_t of_row = m->experts * (int64_t)m->widths[0], shares = m->mixtures * (int64_t)m->experts;
    const int64_t rows = in[1].count / of_row, share_rows = in[0].count / shares;
    if (in[1].count != rows * of_row)
        return misfit(kernel, "experts", in[1].count, rows * of_row);
    if (in[0].count != share_rows * shares || (share_rows != 1 && share_rows != rows))
        return misfit(kernel, "shares", in[0].count, rows * shares);
    const int64_t sizes[] = {rows, m->outputs ? m->outputs : m->mixtures * (int64_t)m->widths[0]};
    void *y;
    OrtStatus *status = write_output(kernel, context, 0, sizes, 2, &y);
    if (status)
        return status;
    return run_mixtures(m, rows, share_rows, in[0].data, in[1].data, y) ? NULL : no_memory(kernel);
}

/* ---- RequestShare(x f32 [1, K], layout [K, H], weights s8, worth f32, bias f32, step f32) → f32 [1, H] */

static OrtStatus *open_linear(Kernel *kernel, const Input *in, int before, int64_t *numbers) {
    ByteLinear *s = &kernel->linear;
    int widths[MAX_LAYERS + 1], layers;
    OrtStatus *status = read_layout(kernel, &in[1], before, numbers, widths, &layers);
    if (status)
        return status;
    if (layers != 1)
        return refuse(kernel, "layout: expected one layer");
    s->inputs = widths[0];
    s->outputs = widths[1];
    if (in[2].count != (int64_t)s->inputs * s->outputs)
        return misfit(kernel, "weights", in[2].count, (int64_t)s->inputs * s->outputs);
    if (in[3].count != s->outputs)
        return misfit(kernel, "worth", in[3].count, s->outputs);
    return NULL;
}

static OrtStatus *open_share(Kernel *kernel, const Input *in) {
    OrtStatus *status = open_linear(kernel, in, 0, NULL);
    if (status)
        return status;
    if (in[5].count != 1 || !(*(const float *)in[5].data > 0))
        return refuse(kernel, "layout: expected one step above 0");
    kernel->linear.zero_point = 128;
    kernel->linear.step = *(const float *)in[5].data;
    return pack_byte_linear(&kernel->linear, in[2].data) ? NULL : no_memory(kernel);
}

static OrtStatus *run_share(Kernel *kernel, OrtKernelContext *context, const Input *in) {
    const ByteLinear *s = &kernel->linear;
    if (in[0].count != s->inputs)
        return misfit(kernel, "x", in[0].count, s->inputs);
    if (in[3].count != s->outputs)
        return misfit(kernel, "worth", in[3].count, s->outputs);
    if (in[4].count != s->outputs)
        return misfit(kernel, "bias", in[4].count, s->outputs);
    const int64_t sizes[] = {1, s->outputs};
    void *y;
    OrtStatus *status = write_output(kernel, context, 0, sizes, 2, &y);
    if (status)
        return status;
    return run_request_share(s, in[0].data, in[3].data, in[4].data, y) ? NULL : no_memory(kernel);
}

/* ---- ByteLinear(x u8 [N, K], layout [zero point, offset in share, K, H], weights s8, worth f32, share f32) → f32 [N, H] */

static OrtStatus *open_byte_linear(Kernel *kernel, const Input *in) {
    int64_t numbers[2];
    OrtStatus *status = open_linear(kernel, in, 2, numbers);
    if (status)
        return status;
    if (numbers[0] > 255)
        return refuse(kernel, "layout: the zero point is no byte");
    kernel->linear.zero_point = (int)numbers[0];
    kernel->offset_in_share = numbers[1];
    return pack_byte_linear(&kernel->linear, in[2].data) ? NULL : no_memory(kernel);
}

static OrtStatus *run_byte_linear_of(Kernel *kernel, OrtKernelContext *context, const Input *in) {
    const ByteLinear *s = &kernel->linear;
    const int64_t rows = in[0].count / s->inputs;
    if (in[0].count != rows * s->inputs)
        return misfit(kernel, "x", in[0].count, rows * s->inputs);
    if (in[3].count != s->outputs)
        return misfit(kernel, "worth", in[3].count, s->outputs);
    if (in[4].count < kernel->offset_in_share + s->outputs)
        return misfit(kernel, "share", in[4].count, kernel->offset_in_share + s->outputs);
    const int64_t sizes[] = {rows, s->outputs};
    void *y;
    OrtStatus *status = write_output(kernel, context, 0, sizes, 2, &y);
    if (!status)
        run_byte_linear(s, rows, in[0].data, in[3].data, (const float *)in[4].data + kernel->offset_in_share, y);
    return status;
}

/* ---- GatherBytes, GatherFloats(codes s32 [N, C], layout [C, D], offsets s32 [C], table u8 or f32 [R, D]) → [N, C·D] */

static OrtStatus *open_nothing(Kernel *kernel, const Input *in) {
    (void)kernel, (void)in;
    return NULL;
}

static OrtStatus *gather(Kernel *kernel, OrtKernelContext *context, const Input *in, int bytes) {
    int widths[MAX_LAYERS + 1], layers;
    OrtStatus *status = read_layout(kernel, &in[1], 0, NULL, widths, &layers);
    if (status)
        return status;
    const int64_t columns = widths[0], width = layers == 1 ? widths[1] : 1; /* elements, not bytes */
    const int64_t rows = in[0].count / columns, table_rows = in[3].count / width;
    if (in[0].count != rows * columns)
        return misfit(kernel, "codes", in[0].count, rows * columns);
    if (in[2].count != columns)
        return misfit(kernel, "offsets", in[2].count, columns);
    if (layers != 1 || in[3].count != table_rows * width)
        return misfit(kernel, "table", in[3].count, table_rows * width);
    const int64_t sizes[] = {rows, columns * width};
    void *y;
    if ((status = write_output(kernel, context, 0, sizes, 2, &y)))
        return status;
    const int64_t missing =
        run_gather_bytes(rows, (int)columns, (int)width * bytes, table_rows, in[0].data, in[2].data, in[3].data, y);
    return missing < 0 ? NULL : misfit(kernel, "a code's row", ((const int32_t *)in[0].data)[missing], table_rows);
}

static OrtStatus *run_gather_u8(Kernel *kernel, OrtKernelContext *context, const Input *in) {
    return gather(kernel, context, in, 1);
}

static OrtStatus *run_gather_f32(Kernel *kernel, OrtKernelContext *context, const Input *in) {
    return gather(kernel, context, in, 4);
}

/* ---- LatentHead(logits f32 [N or 1, 2·T], h f32 [N, 1], layout [T, order…, parents + 1…], bounds f32 [2·T])
 * → p, p_joint f32 [N, T], p_up f32 [N] */

static OrtStatus *open_head(Kernel *kernel, const Input *in) {
    LatentHead *head = &kernel->head;
    const int64_t *layout = in[2].data, tasks = in[2].count > 0 ? layout[0] : 0;
    if (tasks < 1 || tasks > MAX_TASKS || in[2].count != 1 + 2 * tasks)
        return misfit(kernel, "layout", in[2].count, 1 + 2 * tasks);
    head->tasks = (int)tasks;
    for (int t = 0; t < tasks; t++) {
        const int64_t task = layout[1 + t], parent = layout[1 + tasks + t] - 1;
        if (task < 0 || task >= tasks || parent < -1 || parent >= tasks)
            return refuse(kernel, "layout: there is no such task");
        head->order[t] = (int)task;
        head->parents[t] = (int)parent;
        head->chains |= parent >= 0;
    }
    return NULL;
}

static OrtStatus *run_head(Kernel *kernel, OrtKernelContext *context, const Input *in) {
    const int64_t tasks = kernel->head.tasks, rows = in[1].count, logit_rows = in[0].count / (2 * tasks);
    if (in[0].count != logit_rows * 2 * tasks || (logit_rows != 1 && logit_rows != rows))
        return misfit(kernel, "logits", in[0].count, rows * 2 * tasks);
    if (in[3].count != 2 * tasks)
        return misfit(kernel, "bounds", in[3].count, 2 * tasks);
    const int64_t sizes[] = {rows, tasks};
    void *p, *p_joint, *p_up;
    OrtStatus *status = write_output(kernel, context, 0, sizes, 2, &p);
    if (!status)
        status = write_output(kernel, context, 1, sizes, 2, &p_joint);
    if (!status)
        status = write_output(kernel, context, 2, sizes, 1, &p_up);
    if (status)
        return status;
    return run_latent_head(&kernel->head, rows, logit_rows, in[0].data, in[1].data, in[3].data, p, p_joint, p_up)
               ? NULL
               : no_memory(kernel);
}

/* ---- what ONNX Runtime asks */

static OrtStatus *create_kernel(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
    (void)info;
    Kernel *k = calloc(1, sizeof *k);
    if (!k)
        return api->CreateStatus(ORT_RUNTIME_EXCEPTION, "out of memory");
    k->operator = of(op);
    k->api = api;
    pthread_mutex_init(&k->packing, NULL);
    *kernel = k;
    return NULL;
}

static OrtStatus *compute(void *of_session, OrtKernelContext *context) {
    Kernel *kernel = of_session;
    const Operator *operator = kernel->operator;
    Input inputs[MOST_INPUTS];
    for (int i = 0; i < MOST_INPUTS; i++)
        inputs[i] = (Input){NULL, -1};
    size_t given = 0;
    OrtStatus *status = kernel->api->KernelContext_GetInputCount(context, &given);
    for (size_t i = 0; !status && i < given && i < (size_t)operator->inputs; i++)
        status = read_input(kernel, context, i, &inputs[i]);
    if (status)
        return status;
    if (!__atomic_load_n(&kernel->packed, __ATOMIC_ACQUIRE)) {
        pthread_mutex_lock(&kernel->packing);
        if (!kernel->packed && !(status = operator->open(kernel, inputs)))
            __atomic_store_n(&kernel->packed, 1, __ATOMIC_RELEASE);
        pthread_mutex_unlock(&kernel->packing);
        if (status)
            return status;
    }
    return operator->run(kernel, context, inputs);
}

static const char *name_of(const OrtCustomOp *op) { return of(op)->name; }
static const char *any_provider(const OrtCustomOp *op) {
    (void)op;
    return NULL;
}
static int input_type(const OrtCustomOp *op, size_t index) { return of(op)->input_types[index]; }
static size_t input_count(const OrtCustomOp *op) { return (size_t)of(op)->inputs; }
static int output_type(const OrtCustomOp *op, size_t index) {
    (void)index;
    return of(op)->output_type;
}
static size_t output_count(const OrtCustomOp *op) { return (size_t)of(op)->outputs; }
static int input_characteristic(const OrtCustomOp *op, size_t index) {
    return (int)index < of(op)->required ? INPUT_REQUIRED : INPUT_OPTIONAL;
}
static int output_characteristic(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return INPUT_REQUIRED;
}
static int input_memory(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return 0;
}
static int one(const OrtCustomOp *op) {
    (void)op;
    return 1;
}
static int any_version(const OrtCustomOp *op) {
    (void)op;
    return INT32_MAX;
}

static void destroy_kernel(void *kernel) {
    Kernel *k = kernel;
    free(k->networks.memory);
    free(k->mixtures.memory);
    free(k->linear.memory);
    pthread_mutex_destroy(&k->packing);
    free(k);
}

#define ASKED \
    { \
        .version = ORT_API_VERSION_USED, .GetName = name_of, .GetExecutionProviderType = any_provider, \
        .GetInputType = input_type, .GetInputTypeCount = input_count, .GetOutputType = output_type, \
        .GetOutputTypeCount = output_count, .KernelDestroy = destroy_kernel, \
        .GetInputCharacteristic = input_characteristic, .GetOutputCharacteristic = output_characteristic, \
        .GetInputMemoryType = input_memory, .GetVariadicInputMinArity = one, .GetVariadicInputHomogeneity = one, \
        .GetVariadicOutputMinArity = one, .GetVariadicOutputHomogeneity = one, .CreateKernelV2 = create_kernel, \
        .KernelComputeV2 = compute, .GetStartVersion = one, .GetEndVersion = any_version \
    }

static const Operator byte_networks = {
    .op = ASKED, .name = "ByteNetworks", .inputs = 7, .required = 5,
    .input_types = {TENSOR_UINT8, TENSOR_INT64, TENSOR_INT8, TENSOR_FLOAT, TENSOR_INT32, TENSOR_FLOAT, TENSOR_UINT8},
    .output_type = TENSOR_UINT8, .outputs = 1, .open = open_networks, .run = run_networks,
};
static const Operator mixtures = {
    .op = ASKED, .name = "Mixtures", .inputs = 5, .required = 3,
    .input_types = {TENSOR_FLOAT, TENSOR_UINT8, TENSOR_INT64, TENSOR_FLOAT, TENSOR_FLOAT},
    .output_type = TENSOR_FLOAT, .outputs = 1, .open = open_mixtures, .run = run_mixtures_of,
};
static const Operator request_share = {
    .op = ASKED, .name = "RequestShare", .inputs = 6, .required = 6,
    .input_types = {TENSOR_FLOAT, TENSOR_INT64, TENSOR_INT8, TENSOR_FLOAT, TENSOR_FLOAT, TENSOR_FLOAT},
    .output_type = TENSOR_FLOAT, .outputs = 1, .open = open_share, .run = run_share,
};
static const Operator byte_linear = {
    .op = ASKED, .name = "ByteLinear", .inputs = 5, .required = 5,
    .input_types = {TENSOR_UINT8, TENSOR_INT64, TENSOR_INT8, TENSOR_FLOAT, TENSOR_FLOAT},
    .output_type = TENSOR_FLOAT, .outputs = 1, .open = open_byte_linear, .run = run_byte_linear_of,
};
static const Operator gather_floats = {
    .op = ASKED, .name = "GatherFloats", .inputs = 4, .required = 4,
    .input_types = {TENSOR_INT32, TENSOR_INT64, TENSOR_INT32, TENSOR_FLOAT},
    .output_type = TENSOR_FLOAT, .outputs = 1, .open = open_nothing, .run = run_gather_f32,
};
static const Operator gather_bytes = {
    .op = ASKED, .name = "GatherBytes", .inputs = 4, .required = 4,
    .input_types = {TENSOR_INT32, TENSOR_INT64, TENSOR_INT32, TENSOR_UINT8},
    .output_type = TENSOR_UINT8, .outputs = 1, .open = open_nothing, .run = run_gather_u8,
};
static const Operator latent_head = {
    .op = ASKED, .name = "LatentHead", .inputs = 4, .required = 4,
    .input_types = {TENSOR_FLOAT, TENSOR_FLOAT, TENSOR_INT64, TENSOR_FLOAT},
    .output_type = TENSOR_FLOAT, .outputs = 3, .open = open_head, .run = run_head,
};

/* What SessionOptions.register_custom_ops_library calls. The domain lives as long as the process. */
__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;
    static OrtCustomOpDomain *domain = NULL;
    const OrtApi *api = base->GetApi(ORT_API_VERSION_USED);
    OrtStatus *status = NULL;
    pthread_mutex_lock(&making);
    if (!domain && !(status = api->CreateCustomOpDomain(DOMAIN, &domain))) {
        const Operator *all[] = {&byte_networks, &mixtures,     &request_share, &byte_linear,
                                 &gather_bytes,  &gather_floats, &latent_head};
        for (size_t i = 0; !status && i < sizeof all / sizeof *all; i++)
            status = api->CustomOpDomain_Add(domain, &all[i]->op);
    }
    pthread_mutex_unlock(&making);
    return status ? status : api->AddCustomOpDomain(options, domain);
}
