/* What the operators compute, as `operators.c` asks for it. Knows nothing of ONNX Runtime.
 *
 * Weights in bytes are packed in panels of 16 outputs, [K/4, 16, 4]: what both a tile of AMX and a vector of VNNI take.
 * Floats are packed in rows of whole vectors of 16. Functions that allocate return 0 where memory is out.
 *
 * Legend: N candidates, E networks, M mixtures, K input and H output width of a layer. */
#ifndef DLEN_KERNELS_H
#define DLEN_KERNELS_H

#include <stdint.h>

/* Instruction sets by speed; each gives the same integers. */
enum { PORTABLE = 0, AVX512_VNNI = 1, AMX_INT8 = 2 };

/* The set in use: at first the best that processor and kernel allow, asked once. */
int instructions_in_use(void);
/* Use a lesser set (0), or be refused one that the processor lacks (-1). */
int use_instructions(int level);

#define MAX_LAYERS 8

/* E networks of whole-number layers: y = clip(round((x·W + b)·scale), 0…255), layer after layer. */
typedef struct {
    int networks, layers;
    int widths[MAX_LAYERS + 1];
    int own_input;          /* network e reads columns offset + e·K…, else all read those from offset on */
    int zero_point;         /* of the first layer's input */
    int64_t stride, offset; /* of a row of the input, in bytes */
    int8_t *weights[MAX_LAYERS];
    float *scales[MAX_LAYERS];
    int32_t *from_zero_point; /* [E, H] of the first layer: what it adds to the bias */
    void *memory;
} ByteNetworks;

/* weights: layer after layer [E, K, H]; scales: [E, H] each. */
int pack_byte_networks(ByteNetworks *networks, const int8_t *weights, const float *scales);
/* biases: layer after layer [E, H]; with share, [E, H] to be rounded, of later layers only; at_least: null, or [E, K] that
 * each input counts as at least; y: [N, E, H]. */
int run_byte_networks(const ByteNetworks *networks, int64_t rows, const uint8_t *x, const int32_t *biases,
                      const float *share, const uint8_t *at_least, uint8_t *y);

/* Mixtures of experts in bytes and, if there are outputs, a tower on each: dense layers with ReLU, if any, and at last one
 * without that reads all towers side by side. */
typedef struct {
    int mixtures, experts;
    int softmax; /* shares are given as logits */
    int layers;  /* of a tower */
    int widths[MAX_LAYERS + 1];
    int outputs; /* of the last layer; 0: the mixtures themselves are returned */
    float *weights[MAX_LAYERS + 1], *biases[MAX_LAYERS + 1];
    void *memory;
} Mixtures;

/* weights: layer after layer [M, K, H], at last [M·H, outputs]; biases: [M, H] each, at last [outputs]. */
int pack_mixtures(Mixtures *mixtures, const float *weights, const float *biases);
/* shares: [N or 1, M·E]; experts: [N, E, H]; y: [N, outputs], without outputs [N, M·H]. */
int run_mixtures(const Mixtures *mixtures, int64_t rows, int64_t share_rows, const float *shares,
                 const uint8_t *experts, float *y);

/* One layer of bytes around a zero point times weights in bytes, floats out. */
typedef struct {
    int inputs, outputs, zero_point;
    float step; /* of a request's row, which is floats: 256·high + low such steps, each a byte around 128 */
    int8_t *weights;
    int32_t *from_zero_point;
    void *memory;
} ByteLinear;

/* weights: [K, H]. */
int pack_byte_linear(ByteLinear *linear, const int8_t *weights);
/* x: [K]; worth: [H] of a step of the weights; bias: [H]; y: [H]. */
int run_request_share(const ByteLinear *linear, const float *x, const float *worth, const float *bias, float *y);
/* x: [N, K]; y: [N, H]. */
void run_byte_linear(const ByteLinear *linear, int64_t rows, const uint8_t *x, const float *worth, const float *bias,
                     float *y);

/* Rows of a table of bytes [R, width] side by side: y [N, columns·width]. −1, or which code has no row. */
int64_t run_gather_bytes(int64_t rows, int columns, int width, int64_t table_rows, const int32_t *codes,
                         const int32_t *offsets, const uint8_t *table, uint8_t *y);

/* Logits of all tasks in both states and of the latent state → P(task), P(task, UP), P(UP) (the paper's Eq. 1, 4, 10). */
#define MAX_TASKS 64
typedef struct {
    int tasks, chains;
    int order[MAX_TASKS], parents[MAX_TASKS]; /* −1: none */
} LatentHead;

/* logits: [N or 1, 2·T], all f, then all g; h: [N]; bounds: [2·T]; p, p_joint: [N, T]; p_up: [N]. */
int run_latent_head(const LatentHead *head, int64_t rows, int64_t logit_rows, const float *logits, const float *h,
                    const float *bounds, float *p, float *p_joint, float *p_up);

#endif
