#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#define X86 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define X86 0
#endif

#define LANES 16       /* outputs of a panel, floats of a vector */
#define TILE_INPUTS 64 /* bytes of a tile's row */
#define TILE_ROWS 16
#define BLOCK_ROWS 64 /* candidates that go through a network together: what is between its layers stays in the first-level cache */
#define ALIGNMENT 64

static inline int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* ---- instruction sets */

static int detect_instructions(void) {
#if X86
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")))
        return PORTABLE;
    unsigned eax = 7, ebx, ecx = 0, edx;
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    const unsigned amx_tile = 1u << 24, amx_int8 = 1u << 25;
    if ((edx & amx_tile) && (edx & amx_int8)) {
        enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
        if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0)
            return AMX_INT8;
    }
    return AVX512_VNNI;
#else
    return PORTABLE;
#endif
}

static int best = -1, in_use = -1;

int instructions_in_use(void) {
    if (__atomic_load_n(&in_use, __ATOMIC_ACQUIRE) < 0) {
        best = detect_instructions();
        __atomic_store_n(&in_use, best, __ATOMIC_RELEASE);
    }
    return in_use;
}

int use_instructions(int level) {
    instructions_in_use();
    if (level < PORTABLE || level > best)
        return -1;
    __atomic_store_n(&in_use, level, __ATOMIC_RELEASE);
    return 0;
}

/* ---- packing */

/* [K, H] → panels [H/16][K/4][16][4], zeros where there are no inputs or outputs; sums of columns, if asked for. */
static void pack_panels(const int8_t *weights, int inputs, int outputs, int8_t *packed, int32_t *sums) {
    const int64_t deep = up_to(inputs, TILE_INPUTS);
    for (int h = 0; h < outputs; h++) {
        int8_t *panel = packed + h / LANES * LANES * deep + h % LANES * 4;
        int32_t sum = 0;
        for (int k = 0; k < inputs; k++) {
            const int8_t weight = weights[(int64_t)k * outputs + h];
            panel[k / 4 * 4 * LANES + k % 4] = weight;
            sum += weight;
        }
        if (sums)
            sums[h] = sum;
    }
}

static int64_t panel_bytes(int inputs, int outputs) { return up_to(inputs, TILE_INPUTS) * up_to(outputs, LANES); }

static void *aligned(int64_t bytes) { return aligned_alloc(ALIGNMENT, up_to(bytes + 1, ALIGNMENT)); }

static void *zeroed(int64_t bytes) {
    void *memory = aligned(bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

int pack_byte_networks(ByteNetworks *n, const int8_t *weights, const float *scales) {
    int64_t bytes = 0;
    for (int l = 0; l < n->layers; l++)
        bytes += n->networks * (panel_bytes(n->widths[l], n->widths[l + 1]) + 4 * up_to(n->widths[l + 1], LANES));
    bytes += n->networks * 4 * up_to(n->widths[1], LANES);
    char *at = n->memory = zeroed(bytes);
    if (!at)
        return 0;
    n->from_zero_point = (int32_t *)at;
    at += n->networks * 4 * up_to(n->widths[1], LANES);
    for (int l = 0; l < n->layers; l++) {
        const int inputs = n->widths[l], outputs = n->widths[l + 1];
        const int64_t wide = up_to(outputs, LANES), panels = panel_bytes(inputs, outputs);
        n->scales[l] = (float *)at;
        at += n->networks * 4 * wide;
        n->weights[l] = (int8_t *)at;
        at += n->networks * panels;
        for (int e = 0; e < n->networks; e++) {
            int32_t *sums = l == 0 ? n->from_zero_point + e * wide : NULL;
            pack_panels(weights, inputs, outputs, n->weights[l] + e * panels, sums);
            for (int h = 0; sums && h < outputs; h++)
                sums[h] *= -n->zero_point;
            memcpy(n->scales[l] + e * wide, scales, 4 * outputs);
            weights += (int64_t)inputs * outputs;
            scales += outputs;
        }
    }
    return 1;
}

/* ---- products of bytes
 *
 * One layer of a block of rows: x [rows up to a tile's, deep] → y [rows, ld], bytes; ld ≥ up_to(outputs, 16). */

static void layer_portable(const uint8_t *x, int64_t deep, int rows, const int8_t *weights, int64_t wide,
                           const int32_t *bias, const float *scale, uint8_t *y, int64_t ld) {
    for (int64_t h = 0; h < wide; h += LANES, weights += deep * LANES)
        for (int r = 0; r < rows; r++) {
            int32_t sums[LANES];
            memcpy(sums, bias + h, sizeof sums);
            for (int64_t k = 0; k < deep; k += 4)
                for (int i = 0; i < LANES; i++)
                    for (int j = 0; j < 4; j++)
                        sums[i] += (int32_t)x[r * deep + k + j] * weights[k * LANES + 4 * i + j];
            for (int i = 0; i < LANES; i++) {
                const float scaled = (float)sums[i] * scale[h + i];
                y[r * ld + h + i] = scaled >= 255 ? 255 : scaled > 0 ? (uint8_t)rintf(scaled) : 0;
            }
        }
}

#if X86
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,amx-tile,amx-int8")))

AVX512 static inline __m128i rescaled(__m512i sums, __m512 scale) {
    const __m512 scaled = _mm512_min_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale), _mm512_set1_ps(255));
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_cvtps_epi32(scaled), _mm512_setzero_si512()));
}

AVX512 static inline void rows_vnni(const uint8_t *x, int64_t deep, int rows, const int8_t *panel, __m512i bias,
                                    __m512 scale, uint8_t *y, int64_t ld) {
    __m512i sums[8];
    for (int r = 0; r < 8; r++)
        sums[r] = bias;
    for (int64_t k = 0; k < deep; k += 4) {
        const __m512i weights = _mm512_load_si512(panel + k * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            int32_t four;
            memcpy(&four, x + r * deep + k, 4);
            sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_set1_epi32(four), weights);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++)
        if (r < rows)
            _mm_storeu_si128((__m128i *)(y + r * ld), rescaled(sums[r], scale));
}

AVX512 static void layer_vnni(const uint8_t *x, int64_t deep, int rows, const int8_t *weights, int64_t wide,
                              const int32_t *bias, const float *scale, uint8_t *y, int64_t ld) {
    for (int64_t h = 0; h < wide; h += LANES, weights += deep * LANES)
        for (int r = 0; r < rows; r += 8)
            rows_vnni(x + r * deep, deep, rows - r, weights, _mm512_loadu_si512(bias + h), _mm512_loadu_ps(scale + h),
                      y + r * ld + h, ld);
}

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

/* Eight tiles of 16 rows of 64 bytes. In memory, not on the stack: the compiler believes that 8 bytes of it are read. */
static const TileConfig tiles = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

AMX static void open_tiles(void) { _tile_loadconfig(&tiles); }

AMX static void close_tiles(void) { _tile_release(); }

AVX512 static inline void rescale_rows(const int32_t *sums, int rows, __m512 scale, uint8_t *y, int64_t ld) {
    for (int r = 0; r < rows; r++)
        _mm_storeu_si128((__m128i *)(y + r * ld), rescaled(_mm512_load_si512(sums + r * LANES), scale));
}

/* Tiles 0 to 3 hold sums, 4 and 5 rows of x, 6 weights. */
#define MULTIPLY(tile, of_x) \
    _tile_loadd(of_x, x + (tile)*TILE_ROWS * deep + k, deep); \
    _tile_dpbusd(tile, of_x, 6)

#define PANEL(tiles) \
    _tile_loadd(0, bias + h, 0); \
    if (tiles > 1) \
        _tile_loadd(1, bias + h, 0); \
    if (tiles > 2) { \
        _tile_loadd(2, bias + h, 0); \
        _tile_loadd(3, bias + h, 0); \
    } \
    for (int64_t k = 0; k < deep; k += TILE_INPUTS) { \
        _tile_loadd(6, weights + k * LANES, TILE_INPUTS); \
        MULTIPLY(0, 4); \
        if (tiles > 1) { \
            MULTIPLY(1, 5); \
        } \
        if (tiles > 2) { \
            MULTIPLY(2, 4); \
            MULTIPLY(3, 5); \
        } \
    }

#define KEEP(tiles) \
    _tile_stored(0, sums, 4 * LANES); \
    if (tiles > 1) \
        _tile_stored(1, sums + TILE_ROWS * LANES, 4 * LANES); \
    if (tiles > 2) { \
        _tile_stored(2, sums + 2 * TILE_ROWS * LANES, 4 * LANES); \
        _tile_stored(3, sums + 3 * TILE_ROWS * LANES, 4 * LANES); \
    }

/* While the tiles multiply one panel, vectors rescale the one before. */
AMX static void layer_amx(const uint8_t *x, int64_t deep, int rows, const int8_t *weights, int64_t wide,
                          const int32_t *bias, const float *scale, uint8_t *y, int64_t ld) {
    __attribute__((aligned(ALIGNMENT))) int32_t both[2][BLOCK_ROWS * LANES];
    for (int64_t h = 0; h < wide; h += LANES, weights += deep * LANES) {
        int32_t *sums = both[h / LANES % 2], *sums_before = both[(h / LANES + 1) % 2];
        if (rows <= TILE_ROWS) {
            PANEL(1)
        } else if (rows <= 2 * TILE_ROWS) {
            PANEL(2)
        } else {
            PANEL(4)
        }
        if (h)
            rescale_rows(sums_before, rows, _mm512_loadu_ps(scale + h - LANES), y + h - LANES, ld);
        if (rows <= TILE_ROWS) {
            KEEP(1)
        } else if (rows <= 2 * TILE_ROWS) {
            KEEP(2)
        } else {
            KEEP(4)
        }
    }
    rescale_rows(both[(wide / LANES + 1) % 2], rows, _mm512_loadu_ps(scale + wide - LANES), y + wide - LANES, ld);
}
#endif

static void layer(int level, const uint8_t *x, int64_t deep, int rows, const int8_t *weights, int64_t wide,
                  const int32_t *bias, const float *scale, uint8_t *y, int64_t ld) {
#if X86
    if (level == AMX_INT8)
        return layer_amx(x, deep, rows, weights, wide, bias, scale, y, ld);
    if (level == AVX512_VNNI)
        return layer_vnni(x, deep, rows, weights, wide, bias, scale, y, ld);
#endif
    layer_portable(x, deep, rows, weights, wide, bias, scale, y, ld);
}

/* ---- networks of bytes */

/* Copy a block of rows side by side, a row's end filled up with zeros, which meet weights of zero. */
static void gather_rows(const uint8_t *x, int64_t stride, int rows, int width, int64_t deep, const uint8_t *at_least,
                        uint8_t *block) {
    for (int r = 0; r < rows; r++, x += stride, block += deep) {
        if (at_least)
            for (int k = 0; k < width; k++)
                block[k] = x[k] > at_least[k] ? x[k] : at_least[k];
        else
            memcpy(block, x, width);
        memset(block + width, 0, deep - width);
    }
}

int run_byte_networks(const ByteNetworks *n, int64_t rows, const uint8_t *x, const int32_t *biases,
                      const uint8_t *at_least, uint8_t *y) {
    const int level = instructions_in_use(), last = n->widths[n->layers];
    const int64_t y_stride = (int64_t)n->networks * last;
    int64_t deepest = 0, bias_bytes = 0;
    for (int l = 0; l < n->layers; l++)
        bias_bytes += 4 * n->networks * up_to(n->widths[l + 1], LANES);
    for (int l = 0; l <= n->layers; l++)
        deepest = up_to(n->widths[l], TILE_INPUTS) > deepest ? up_to(n->widths[l], TILE_INPUTS) : deepest;
    /* three blocks: the input, and a layer's input and output in turns */
    uint8_t *scratch = aligned(3 * BLOCK_ROWS * deepest + bias_bytes);
    if (!scratch)
        return 0;
    uint8_t *input = scratch, *between[2] = {scratch + BLOCK_ROWS * deepest, scratch + 2 * BLOCK_ROWS * deepest};
    int32_t *padded = (int32_t *)(scratch + 3 * BLOCK_ROWS * deepest), *bias = padded;
    for (int l = 0; l < n->layers; l++) {
        const int64_t outputs = n->widths[l + 1], wide = up_to(outputs, LANES);
        for (int e = 0; e < n->networks; e++, bias += wide, biases += outputs)
            for (int64_t h = 0; h < outputs; h++)
                bias[h] = (int32_t)((uint32_t)biases[h] + (l ? 0u : (uint32_t)n->from_zero_point[e * wide + h]));
    }
#if X86
    if (level == AMX_INT8)
        open_tiles();
#endif
    x += n->offset;
    const int64_t first_deep = up_to(n->widths[0], TILE_INPUTS);
    for (int64_t start = 0; start < rows; start += BLOCK_ROWS) {
        const int block = rows - start < BLOCK_ROWS ? (int)(rows - start) : BLOCK_ROWS;
        for (int e = 0; e < n->networks; e++) {
            if (e == 0 || n->own_input)
                gather_rows(x + start * n->stride + (n->own_input ? (int64_t)e * n->widths[0] : 0), n->stride, block,
                            n->widths[0], first_deep, at_least ? at_least + (int64_t)e * n->widths[0] : NULL, input);
            const uint8_t *from = input;
            bias = padded;
            for (int l = 0; l < n->layers; l++) {
                const int64_t deep = up_to(n->widths[l], TILE_INPUTS), wide = up_to(n->widths[l + 1], LANES);
                const int64_t next_deep = up_to(n->widths[l + 1], TILE_INPUTS);
                uint8_t *to = between[l % 2];
                if (wide < next_deep)
                    for (int r = 0; r < block; r++)
                        memset(to + r * next_deep + wide, 0, next_deep - wide);
                layer(level, from, deep, block, n->weights[l] + e * panel_bytes(n->widths[l], n->widths[l + 1]), wide,
                      bias + e * wide, n->scales[l] + e * wide, to, next_deep);
                from = to;
                bias += n->networks * wide;
            }
            const int64_t deep = up_to(last, TILE_INPUTS);
            for (int r = 0; r < block; r++)
                memcpy(y + (start + r) * y_stride + (int64_t)e * last, from + r * deep, last);
        }
    }
#if X86
    if (level == AMX_INT8)
        close_tiles();
#endif
    free(scratch);
    return 1;
}

/* ---- floats: written once over vectors of 16, compiled for either instruction set */

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define FLOAT_ROWS 16 /* candidates whose towers are computed together */

INLINE void get(Floats *v, const float *from) { memcpy(v, from, sizeof *v); }
INLINE void put(float *to, const Floats *v) { memcpy(to, v, sizeof *v); }

INLINE Floats larger(Floats a, Floats b) {
    const Ints of_a = a > b;
    return (Floats)(((Ints)a & of_a) | ((Ints)b & ~of_a));
}

/* e^x, x ≤ 0, within 2 units of the last place: 2^n·e^r with |r| ≤ ln 2 / 2, e^r by its series. */
INLINE Floats exponential(Floats x) {
    x = larger(x, (Floats){0} - 87.0f);
    const Floats shifted = x * 1.44269504f + 12582912.0f; /* 1.5·2^23 rounds to a whole number */
    const Floats n = shifted - 12582912.0f;
    const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
}

/* Shares of a block of rows, [M·E] vectors over its rows. */
INLINE void block_shares(const Mixtures *m, const float *shares, int64_t stride, int rows, float *by_rows) {
    const int each = m->experts, all = m->mixtures * each;
    for (int r = 0; r < FLOAT_ROWS; r++)
        for (int i = 0; i < all; i++)
            by_rows[i * FLOAT_ROWS + r] = shares[(r < rows ? r : 0) * stride + i];
    if (!m->softmax)
        return;
    for (int first = 0; first < all; first += each) {
        float *mine = by_rows + (int64_t)first * FLOAT_ROWS;
        Floats most, x, sum;
        get(&most, mine);
        for (int e = 1; e < each; e++) {
            get(&x, mine + e * FLOAT_ROWS);
            most = larger(most, x);
        }
        sum = (Floats){0};
        for (int e = 0; e < each; e++) {
            get(&x, mine + e * FLOAT_ROWS);
            x = exponential(x - most);
            sum += x;
            put(mine + e * FLOAT_ROWS, &x);
        }
        sum = 1.0f / sum;
        for (int e = 0; e < each; e++) {
            get(&x, mine + e * FLOAT_ROWS);
            x *= sum;
            put(mine + e * FLOAT_ROWS, &x);
        }
    }
}

/* Mixtures of one row, wide = up_to(H, 16): y [M, wide]. */
INLINE void mix_row(const Mixtures *m, const float *share, const uint8_t *experts, int rows_apart, float *y) {
    const int width = m->widths[0];
    const int64_t wide = up_to(width, LANES);
    for (int h = 0; h < wide; h += LANES) {
        for (int first = 0; first < m->mixtures; first += 8) {
            const int mixtures = m->mixtures - first < 8 ? m->mixtures - first : 8;
            Floats sums[8];
            for (int i = 0; i < 8; i++)
                sums[i] = (Floats){0};
            for (int e = 0; e < m->experts; e++) {
                Bytes bytes = {0};
                if (h + LANES <= width)
                    memcpy(&bytes, experts + e * width + h, sizeof bytes);
                else
                    memcpy(&bytes, experts + e * width + h, width - h);
                const Floats x = __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++)
                    if (i < mixtures)
                        sums[i] += share[((first + i) * m->experts + e) * rows_apart] * x;
            }
            for (int i = 0; i < mixtures; i++)
                put(y + (first + i) * wide + h, &sums[i]);
        }
    }
}

/* y [16, ldy] = x [16, ldx] · W [K, wide] + b, with ReLU if asked for; eight rows by two vectors at a time. */
INLINE void dense_part(const float *x, int64_t ldx, int inputs, const float *weights, int64_t wide, const float *bias,
                       float *y, int64_t ldy, int relu, int vectors) {
    for (int r0 = 0; r0 < FLOAT_ROWS; r0 += 8) {
        Floats sums[8][2];
        for (int v = 0; v < vectors; v++) {
            Floats b;
            get(&b, bias + v * LANES);
            for (int r = 0; r < 8; r++)
                sums[r][v] = b;
        }
        for (int k = 0; k < inputs; k++) {
            Floats w[2];
            for (int v = 0; v < vectors; v++)
                get(&w[v], weights + k * wide + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < 8; r++)
#pragma GCC unroll 2
                for (int v = 0; v < vectors; v++)
                    sums[r][v] += x[(r0 + r) * ldx + k] * w[v];
        }
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) {
                const Floats sum = relu ? larger(sums[r][v], (Floats){0}) : sums[r][v];
                put(y + (r0 + r) * ldy + v * LANES, &sum);
            }
    }
}

INLINE void dense(const float *x, int64_t ldx, int inputs, const float *weights, int64_t wide, const float *bias,
                  float *y, int64_t ldy, int relu) {
    int64_t h = 0;
    for (; h + 2 * LANES <= wide; h += 2 * LANES)
        dense_part(x, ldx, inputs, weights + h, wide, bias + h, y + h, ldy, relu, 2);
    if (h < wide)
        dense_part(x, ldx, inputs, weights + h, wide, bias + h, y + h, ldy, relu, 1);
}

int pack_mixtures(Mixtures *m, const float *weights, const float *biases) {
    int64_t floats = 0;
    const int last = m->layers;
    for (int l = 0; l < last; l++)
        floats += m->mixtures * (up_to(m->widths[l], LANES) + 1) * up_to(m->widths[l + 1], LANES);
    floats += (m->mixtures * up_to(m->widths[last], LANES) + 1) * up_to(m->outputs, LANES);
    float *at = m->memory = zeroed(4 * floats);
    if (!at)
        return 0;
    for (int l = 0; l < last; l++) {
        const int64_t inputs = m->widths[l], outputs = m->widths[l + 1], wide = up_to(outputs, LANES);
        m->weights[l] = at;
        at += m->mixtures * up_to(inputs, LANES) * wide;
        m->biases[l] = at;
        at += m->mixtures * wide;
        for (int i = 0; i < m->mixtures; i++) {
            for (int64_t k = 0; k < inputs; k++, weights += outputs)
                memcpy(m->weights[l] + (i * up_to(inputs, LANES) + k) * wide, weights, 4 * outputs);
            memcpy(m->biases[l] + i * wide, biases, 4 * outputs);
            biases += outputs;
        }
    }
    if (m->outputs) { /* reads towers side by side as they lie, each filled up to whole vectors */
        const int64_t inputs = m->widths[last], wide = up_to(m->outputs, LANES);
        m->weights[last] = at;
        at += m->mixtures * up_to(inputs, LANES) * wide;
        m->biases[last] = at;
        for (int i = 0; i < m->mixtures; i++)
            for (int64_t k = 0; k < inputs; k++, weights += m->outputs)
                memcpy(m->weights[last] + (i * up_to(inputs, LANES) + k) * wide, weights, 4 * m->outputs);
        memcpy(m->biases[last], biases, 4 * m->outputs);
    }
    return 1;
}

INLINE int mixtures_of_all(const Mixtures *m, int64_t rows, int64_t share_rows, const float *shares,
                           const uint8_t *experts, float *y) {
    const int all = m->mixtures * m->experts;
    int64_t widest = up_to(m->outputs, LANES);
    for (int l = 0; l <= m->layers; l++)
        widest = m->mixtures * up_to(m->widths[l], LANES) > widest ? m->mixtures * up_to(m->widths[l], LANES) : widest;
    float *scratch = zeroed(4 * FLOAT_ROWS * (all + 2 * widest));
    if (!scratch)
        return 0;
    float *by_rows = scratch, *between[2] = {scratch + FLOAT_ROWS * all, scratch + FLOAT_ROWS * (all + widest)};
    const int64_t share_stride = share_rows == 1 ? 0 : all, of_row = (int64_t)m->experts * m->widths[0];
    for (int64_t start = 0; start < rows; start += FLOAT_ROWS) {
        const int block = rows - start < FLOAT_ROWS ? (int)(rows - start) : FLOAT_ROWS;
        block_shares(m, shares + start * share_stride, share_stride, block, by_rows);
        const int64_t mixed = m->mixtures * up_to(m->widths[0], LANES);
        for (int r = 0; r < block; r++)
            mix_row(m, by_rows + r, experts + (start + r) * of_row, FLOAT_ROWS, between[0] + r * mixed);
        const float *from = between[0];
        int64_t from_wide = up_to(m->widths[0], LANES);
        for (int l = 0; l < m->layers; l++) {
            const int64_t wide = up_to(m->widths[l + 1], LANES);
            float *to = between[(l + 1) % 2];
            for (int i = 0; i < m->mixtures; i++)
                dense(from + i * from_wide, m->mixtures * from_wide, m->widths[l],
                      m->weights[l] + i * up_to(m->widths[l], LANES) * wide, wide, m->biases[l] + i * wide,
                      to + i * wide, m->mixtures * wide, 1);
            from = to;
            from_wide = wide;
        }
        if (m->outputs) {
            const int64_t wide = up_to(m->outputs, LANES);
            float *to = between[(m->layers + 1) % 2];
            dense(from, m->mixtures * from_wide, (int)(m->mixtures * from_wide), m->weights[m->layers], wide,
                  m->biases[m->layers], to, wide, 0);
            for (int r = 0; r < block; r++)
                memcpy(y + (start + r) * m->outputs, to + r * wide, 4 * m->outputs);
        } else
            for (int r = 0; r < block; r++)
                for (int i = 0; i < m->mixtures; i++)
                    memcpy(y + ((start + r) * m->mixtures + i) * m->widths[0], from + (r * m->mixtures + i) * from_wide,
                           4 * m->widths[0]);
    }
    free(scratch);
    return 1;
}

static int mixtures_portable(const Mixtures *m, int64_t rows, int64_t share_rows, const float *shares,
                             const uint8_t *experts, float *y) {
    return mixtures_of_all(m, rows, share_rows, shares, experts, y);
}

#if X86
AVX512 static int mixtures_avx512(const Mixtures *m, int64_t rows, int64_t share_rows, const float *shares,
                                  const uint8_t *experts, float *y) {
    return mixtures_of_all(m, rows, share_rows, shares, experts, y);
}
#endif

int run_mixtures(const Mixtures *m, int64_t rows, int64_t share_rows, const float *shares, const uint8_t *experts,
                 float *y) {
#if X86
    if (instructions_in_use() >= AVX512_VNNI)
        return mixtures_avx512(m, rows, share_rows, shares, experts, y);
#endif
    return mixtures_portable(m, rows, share_rows, shares, experts, y);
}

/* ---- the request's share of first layers */

int pack_request_share(RequestShare *s, const int8_t *weights) {
    const int64_t wide = up_to(s->outputs, LANES);
    char *at = s->memory = zeroed(4 * wide + panel_bytes(s->inputs, s->outputs));
    if (!at)
        return 0;
    s->from_zero_point = (int32_t *)at;
    s->weights = (int8_t *)(at + 4 * wide);
    pack_panels(weights, s->inputs, s->outputs, s->weights, s->from_zero_point);
    for (int h = 0; h < s->outputs; h++)
        s->from_zero_point[h] *= -128;
    return 1;
}

/* Two rows of bytes times a panel. */
static void two_rows_portable(const uint8_t *high, const uint8_t *low, int64_t deep, const int8_t *panel, int32_t *sums) {
    for (int64_t k = 0; k < deep; k += 4)
        for (int i = 0; i < LANES; i++)
            for (int j = 0; j < 4; j++) {
                const int32_t weight = panel[k * LANES + 4 * i + j];
                sums[i] += high[k + j] * weight;
                sums[LANES + i] += low[k + j] * weight;
            }
}

#if X86
AVX512 static void two_rows_vnni(const uint8_t *high, const uint8_t *low, int64_t deep, const int8_t *panel, int32_t *sums) {
    /* two sums each: a product takes longer than a load */
    __m512i h0 = _mm512_loadu_si512(sums), l0 = _mm512_loadu_si512(sums + LANES);
    __m512i h1 = _mm512_setzero_si512(), l1 = h1;
    for (int64_t k = 0; k < deep; k += 8) {
        int32_t of_high[2], of_low[2];
        memcpy(of_high, high + k, 8);
        memcpy(of_low, low + k, 8);
        const __m512i w0 = _mm512_load_si512(panel + k * LANES), w1 = _mm512_load_si512(panel + (k + 4) * LANES);
        h0 = _mm512_dpbusd_epi32(h0, _mm512_set1_epi32(of_high[0]), w0);
        l0 = _mm512_dpbusd_epi32(l0, _mm512_set1_epi32(of_low[0]), w0);
        h1 = _mm512_dpbusd_epi32(h1, _mm512_set1_epi32(of_high[1]), w1);
        l1 = _mm512_dpbusd_epi32(l1, _mm512_set1_epi32(of_low[1]), w1);
    }
    _mm512_storeu_si512(sums, _mm512_add_epi32(h0, h1));
    _mm512_storeu_si512(sums + LANES, _mm512_add_epi32(l0, l1));
}
#endif

/* Whole steps as a byte around 128, rounded half to even, clipped. */
static uint8_t byte_of(float steps) {
    const float byte = rintf(steps) + 128.0f;
    return byte >= 255 ? 255 : byte > 0 ? (uint8_t)byte : 0;
}

int run_request_share(const RequestShare *s, const float *x, const float *worth, const float *bias, float *y) {
    const int64_t deep = up_to(s->inputs, TILE_INPUTS);
    uint8_t *high = zeroed(2 * deep), *low = high + deep;
    if (!high)
        return 0;
    const float coarse = 256.0f * s->step, fine = s->step;
    for (int k = 0; k < s->inputs; k++) {
        high[k] = byte_of(x[k] / coarse);
        low[k] = byte_of((x[k] - (float)(high[k] - 128) * coarse) / fine);
    }
    for (int h = 0; h < s->outputs; h += LANES) {
        const int lanes = s->outputs - h < LANES ? s->outputs - h : LANES;
        int32_t sums[2 * LANES];
        memcpy(sums, s->from_zero_point + h, 4 * LANES);
        memcpy(sums + LANES, s->from_zero_point + h, 4 * LANES);
        const int8_t *panel = s->weights + h * deep;
#if X86
        if (instructions_in_use() >= AVX512_VNNI)
            two_rows_vnni(high, low, deep, panel, sums);
        else
#endif
            two_rows_portable(high, low, deep, panel, sums);
        for (int i = 0; i < lanes; i++)
            y[h + i] = coarse * ((float)sums[i] * worth[h + i]) + fine * ((float)sums[LANES + i] * worth[h + i]) + bias[h + i];
    }
    free(high);
    return 1;
}
