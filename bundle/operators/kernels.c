/* What the operators compute: in AMX, in AVX-512 with VNNI, and in portable C. */
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
#define GROUP 64       /* outputs whose sums are packed into bytes together: four panels */
#define TILE_INPUTS 64 /* bytes of a tile's row */
#define TILE_ROWS 16
#define BLOCK_ROWS 64 /* candidates that go through a network together: what is between layers stays in the first-level cache */
#define ALIGNMENT 64
#define INLINE static inline __attribute__((always_inline))

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

/* Where an output lies among the four panels of its group, so that packing their sums, which goes by quarters of vectors,
 * puts bytes in order. */
static inline int place_in_group(int h) { return h / GROUP * GROUP + h / 4 % 4 * LANES + h % GROUP / LANES * 4 + h % 4; }

static inline int place_as_is(int h) { return h; }

/* [K, H] → panels [H/16][K/4][16][4], zeros where there are no inputs or outputs; sums of columns. */
static void pack_panels(const int8_t *weights, int inputs, int outputs, int (*place)(int), int8_t *packed, int32_t *sums) {
    const int64_t deep = up_to(inputs, TILE_INPUTS);
    for (int h = 0; h < outputs; h++) {
        int8_t *panel = packed + place(h) / LANES * LANES * deep + place(h) % LANES * 4;
        int32_t sum = 0;
        for (int k = 0; k < inputs; k++) {
            const int8_t weight = weights[(int64_t)k * outputs + h];
            panel[k / 4 * 4 * LANES + k % 4] = weight;
            sum += weight;
        }
        if (sums)
            sums[place(h)] = sum;
    }
}

static int64_t group_bytes(int inputs, int outputs) { return up_to(inputs, TILE_INPUTS) * up_to(outputs, GROUP); }

static void *aligned(int64_t bytes) { return aligned_alloc(ALIGNMENT, up_to(bytes + 1, ALIGNMENT)); }

static void *zeroed(int64_t bytes) {
    void *memory = aligned(bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

int pack_byte_networks(ByteNetworks *n, const int8_t *weights, const float *scales) {
    int64_t bytes = n->networks * 4 * up_to(n->widths[1], GROUP);
    for (int l = 0; l < n->layers; l++)
        bytes += n->networks * (group_bytes(n->widths[l], n->widths[l + 1]) + 4 * up_to(n->widths[l + 1], GROUP));
    char *at = n->memory = zeroed(bytes);
    if (!at)
        return 0;
    n->from_zero_point = (int32_t *)at;
    at += n->networks * 4 * up_to(n->widths[1], GROUP);
    for (int l = 0; l < n->layers; l++) {
        const int inputs = n->widths[l], outputs = n->widths[l + 1];
        const int64_t wide = up_to(outputs, GROUP), all = group_bytes(inputs, outputs);
        n->scales[l] = (float *)at;
        at += n->networks * 4 * wide;
        n->weights[l] = (int8_t *)at;
        at += n->networks * all;
        for (int e = 0; e < n->networks; e++) {
            int32_t *sums = l == 0 ? n->from_zero_point + e * wide : NULL;
            pack_panels(weights, inputs, outputs, place_in_group, n->weights[l] + e * all, sums);
            for (int64_t h = 0; sums && h < wide; h++)
                sums[h] *= -n->zero_point;
            for (int h = 0; h < outputs; h++)
                n->scales[l][e * wide + place_in_group(h)] = scales[h];
            weights += (int64_t)inputs * outputs;
            scales += outputs;
        }
    }
    return 1;
}

/* ---- products of bytes
 *
 * One layer of a block of rows: x [whole tiles, deep] → y [rows, wide], bytes; of a row's inputs so many are not zero. */

static void layer_portable(const uint8_t *x, int inputs, int rows, const int8_t *weights, int64_t wide,
                           const int32_t *bias, const float *scale, uint8_t *y) {
    const int64_t deep = up_to(inputs, TILE_INPUTS);
    for (int r = 0; r < rows; r++)
        for (int64_t group = 0; group < wide; group += GROUP) {
            uint8_t bytes[GROUP];
            for (int64_t h = group; h < group + GROUP; h += LANES) {
                int32_t sums[LANES];
                memcpy(sums, bias + h, sizeof sums);
                for (int64_t k = 0; k < inputs; k += 4)
                    for (int i = 0; i < LANES; i++)
                        for (int j = 0; j < 4; j++)
                            sums[i] += (int32_t)x[r * deep + k + j] * weights[h * deep + k * LANES + 4 * i + j];
                for (int i = 0; i < LANES; i++) {
                    const float scaled = (float)sums[i] * scale[h + i];
                    bytes[h - group + i] = scaled >= 255 ? 255 : scaled > 0 ? (uint8_t)rintf(scaled) : 0;
                }
            }
            for (int h = 0; h < GROUP; h++)
                y[r * wide + group + h] = bytes[place_in_group(h)];
        }
}

#if X86
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,amx-tile,amx-int8")))

/* Sums of a group of one row → bytes. Those that may leave 32 bits when scaled are cut off above before. */
AVX512 static inline __m512i rescaled(const __m512i sums[4], const __m512 scale[4], int cut) {
    __m512i whole[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i]), scale[i]);
        if (cut)
            scaled = _mm512_min_ps(scaled, _mm512_set1_ps(255));
        whole[i] = _mm512_cvtps_epi32(scaled);
    }
    return _mm512_packus_epi16(_mm512_packs_epi32(whole[0], whole[1]), _mm512_packs_epi32(whole[2], whole[3]));
}

/* The scales of a group; whether sums must be cut, which they need not where all are at most 1/2. */
AVX512 static inline int scales_of(const float *scale, __m512 four[4]) {
    __mmask16 large = 0;
    for (int i = 0; i < 4; i++) {
        four[i] = _mm512_loadu_ps(scale + i * LANES);
        large |= _mm512_cmp_ps_mask(four[i], _mm512_set1_ps(0.5f), _CMP_GT_OQ);
    }
    return large != 0;
}

AVX512 static void layer_vnni(const uint8_t *x, int inputs, int rows, const int8_t *weights, int64_t wide,
                              const int32_t *bias, const float *scale, uint8_t *y) {
    enum { ROWS = 5 };
    const int64_t deep = up_to(inputs, TILE_INPUTS);
    for (int64_t h = 0; h < wide; h += GROUP, weights += deep * GROUP) {
        __m512 scales[4];
        const int cut = scales_of(scale + h, scales);
        for (int start = 0; start < rows; start += ROWS) {
            __m512i sums[ROWS][4];
#pragma GCC unroll 5
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    sums[r][i] = _mm512_loadu_si512(bias + h + i * LANES);
            const uint8_t *from[ROWS];
            for (int r = 0; r < ROWS; r++)
                from[r] = x + (start + r < rows ? start + r : rows - 1) * deep;
            for (int64_t k = 0; k < inputs; k += 4) {
                __m512i of_weights[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    of_weights[i] = _mm512_load_si512(weights + i * LANES * deep + k * LANES);
#pragma GCC unroll 5
                for (int r = 0; r < ROWS; r++) {
                    int32_t four;
                    memcpy(&four, from[r] + k, 4);
                    const __m512i of_row = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++)
                        sums[r][i] = _mm512_dpbusd_epi32(sums[r][i], of_row, of_weights[i]);
                }
            }
#pragma GCC unroll 5
            for (int r = 0; r < ROWS; r++)
                if (start + r < rows)
                    _mm512_storeu_si512(y + (start + r) * wide + h, rescaled(sums[r], scales, cut));
        }
    }
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

/* Some rows of a group's sums [4 panels, BLOCK_ROWS, 16] → bytes. */
AVX512 static inline void rescale_rows(const int32_t *sums, int from, int to, const float *scale, uint8_t *y, int64_t ld) {
    __m512 scales[4];
    const int cut = scales_of(scale, scales);
    for (int r = from; r < to; r++) {
        __m512i four[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            four[i] = _mm512_load_si512(sums + (i * BLOCK_ROWS + r) * LANES);
        _mm512_storeu_si512(y + r * ld, cut ? rescaled(four, scales, 1) : rescaled(four, scales, 0));
    }
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

/* While the tiles multiply a group's panels, vectors rescale the group before, a fourth of its rows a panel. */
AMX static void layer_amx(const uint8_t *x, int inputs, int rows, const int8_t *weights, int64_t wide,
                          const int32_t *bias, const float *scale, uint8_t *y) {
    const int64_t deep = up_to(inputs, TILE_INPUTS);
    __attribute__((aligned(ALIGNMENT))) int32_t both[2][4 * BLOCK_ROWS * LANES];
    for (int64_t h = 0; h < wide; h += LANES, weights += deep * LANES) {
        const int panel = h % GROUP / LANES;
        int32_t *sums = both[h / GROUP % 2] + panel * BLOCK_ROWS * LANES;
        if (rows <= TILE_ROWS) {
            PANEL(1)
        } else if (rows <= 2 * TILE_ROWS) {
            PANEL(2)
        } else {
            PANEL(4)
        }
        if (h >= GROUP) {
            const int64_t before = h / GROUP * GROUP - GROUP;
            rescale_rows(both[before / GROUP % 2], rows * panel / 4, rows * (panel + 1) / 4, scale + before, y + before, wide);
        }
        if (rows <= TILE_ROWS) {
            KEEP(1)
        } else if (rows <= 2 * TILE_ROWS) {
            KEEP(2)
        } else {
            KEEP(4)
        }
    }
    const int64_t last = wide - GROUP;
    rescale_rows(both[last / GROUP % 2], 0, rows, scale + last, y + last, wide);
}
#endif

static void layer(int level, const uint8_t *x, int inputs, int rows, const int8_t *weights, int64_t wide,
                  const int32_t *bias, const float *scale, uint8_t *y) {
#if X86
    if (level == AMX_INT8)
        return layer_amx(x, inputs, rows, weights, wide, bias, scale, y);
    if (level == AVX512_VNNI)
        return layer_vnni(x, inputs, rows, weights, wide, bias, scale, y);
#endif
    layer_portable(x, inputs, rows, weights, wide, bias, scale, y);
}

/* ---- networks of bytes */

/* Copy a block of rows side by side, a row's end filled up with zeros, which meet weights of zero. */
INLINE void gather_rows(const uint8_t *x, int64_t stride, int rows, int width, int64_t deep, const uint8_t *at_least,
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

INLINE int32_t whole(float x) {
    const float most = 2147483520.0f;
    return (int32_t)rintf(x > most ? most : x < -most ? -most : x);
}

INLINE int byte_networks(int level, const ByteNetworks *n, int64_t rows, const uint8_t *x, const int32_t *biases,
                         const float *share, const uint8_t *at_least, uint8_t *y) {
    const int last = n->widths[n->layers];
    const int64_t y_stride = (int64_t)n->networks * last;
    int64_t deepest = 0, bias_bytes = 0;
    for (int l = 0; l < n->layers; l++)
        bias_bytes += 4 * n->networks * up_to(n->widths[l + 1], GROUP);
    for (int l = 0; l <= n->layers; l++)
        deepest = up_to(n->widths[l], TILE_INPUTS) > deepest ? up_to(n->widths[l], TILE_INPUTS) : deepest;
    /* three blocks: the input, and a layer's input and output in turns */
    uint8_t *scratch = aligned(3 * BLOCK_ROWS * deepest + bias_bytes);
    if (!scratch)
        return 0;
    uint8_t *input = scratch, *between[2] = {scratch + BLOCK_ROWS * deepest, scratch + 2 * BLOCK_ROWS * deepest};
    int32_t *padded = (int32_t *)(scratch + 3 * BLOCK_ROWS * deepest), *bias = padded;
    int32_t *natural = (int32_t *)scratch; /* a layer's biases in order; the blocks are not in use yet */
    for (int l = 0; l < n->layers; l++) {
        const int64_t outputs = n->widths[l + 1], wide = up_to(outputs, GROUP);
        const int rounded = l == 0 && share;
        for (int e = 0; e < n->networks; e++, bias += wide) {
            memset(natural, 0, 4 * wide);
            if (rounded)
                for (int64_t h = 0; h < outputs; h++)
                    natural[h] = whole(share[h]);
            else
                memcpy(natural, biases, 4 * outputs);
            for (int64_t h = 0; h < wide; h += 4) /* four outputs that lie side by side do so in their group's panels */
                memcpy(bias + place_in_group((int)h), natural + h, 16);
            if (l == 0)
                for (int64_t h = 0; h < wide; h++)
                    bias[h] = (int32_t)((uint32_t)bias[h] + (uint32_t)n->from_zero_point[e * wide + h]);
            if (rounded)
                share += outputs;
            else
                biases += outputs;
        }
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
            if (e == 0 || n->own_input || at_least)
                gather_rows(x + start * n->stride + (n->own_input ? (int64_t)e * n->widths[0] : 0), n->stride, block,
                            n->widths[0], first_deep, at_least ? at_least + (int64_t)e * n->widths[0] : NULL, input);
            const uint8_t *from = input;
            bias = padded;
            for (int l = 0; l < n->layers; l++) {
                const int64_t wide = up_to(n->widths[l + 1], GROUP);
                uint8_t *to = between[l % 2];
                layer(level, from, n->widths[l], block, n->weights[l] + e * group_bytes(n->widths[l], n->widths[l + 1]), wide,
                      bias + e * wide, n->scales[l] + e * wide, to);
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

#if X86
AVX512 static int byte_networks_avx512(int level, const ByteNetworks *n, int64_t rows, const uint8_t *x,
                                       const int32_t *biases, const float *share, const uint8_t *at_least, uint8_t *y) {
    return byte_networks(level, n, rows, x, biases, share, at_least, y);
}
#endif

int run_byte_networks(const ByteNetworks *n, int64_t rows, const uint8_t *x, const int32_t *biases,
                      const float *share, const uint8_t *at_least, uint8_t *y) {
    const int level = instructions_in_use();
#if X86
    if (level >= AVX512_VNNI)
        return byte_networks_avx512(level, n, rows, x, biases, share, at_least, y);
#endif
    return byte_networks(level, n, rows, x, biases, share, at_least, y);
}

/* ---- floats: written once over vectors of 16, compiled for either instruction set */

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

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

/* Up to eight mixtures of 16 outputs of one row; shares lie `apart` by expert, `share_apart` by mixture. */
INLINE void mix_part(int mixtures, int experts, const float *share, int64_t apart, int64_t share_apart, const float *x,
                     float *y, int64_t wide) {
    Floats sums[8];
#pragma GCC unroll 8
    for (int i = 0; i < mixtures; i++)
        sums[i] = (Floats){0};
    for (int e = 0; e < experts; e++) {
        Floats of_expert;
        get(&of_expert, x + e * wide);
#pragma GCC unroll 8
        for (int i = 0; i < mixtures; i++)
            sums[i] += share[i * share_apart + e * apart] * of_expert;
    }
#pragma GCC unroll 8
    for (int i = 0; i < mixtures; i++)
        put(y + i * wide, &sums[i]);
}

/* Mixtures of one row, y [M, wide]; its shares lie `apart`, as_floats [E, wide] is scratch. wide = up_to(H, 16). */
INLINE void mix_row(const Mixtures *m, const float *share, int64_t apart, const uint8_t *experts, float *as_floats,
                    float *y) {
    const int64_t width = m->widths[0], wide = up_to(width, LANES), share_apart = m->experts * apart;
    for (int e = 0; e < m->experts; e++)
        for (int64_t h = 0; h < width; h++)
            as_floats[e * wide + h] = experts[e * width + h];
#define PART(mixtures) \
    case mixtures: \
        mix_part(mixtures, m->experts, share + first * share_apart, apart, share_apart, as_floats + h, \
                 y + first * wide + h, wide); \
        break;
    for (int first = 0; first < m->mixtures; first += 8)
        for (int64_t h = 0; h < wide; h += LANES)
            switch (m->mixtures - first) {
                PART(1)
                PART(2)
                PART(3)
                PART(4)
                PART(5)
                PART(6)
                PART(7)
            default:
                mix_part(8, m->experts, share + first * share_apart, apart, share_apart, as_floats + h,
                         y + first * wide + h, wide);
            }
#undef PART
}

/* y [rows, ldy] = x [rows, ldx] · W [K, 16·vectors] + b, with ReLU if asked for: sums of all stay in registers. */
INLINE void dense_part(int rows, int vectors, const float *x, int64_t ldx, int inputs, const float *weights, int64_t wide,
                       const float *bias, float *y, int64_t ldy, int relu) {
    Floats sums[FLOAT_ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            get(&sums[r][v], bias + v * LANES);
    for (int k = 0; k < inputs; k++) {
        Floats w[2];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            get(&w[v], weights + k * wide + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sums[r][v] += x[r * ldx + k] * w[v];
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            const Floats sum = relu ? larger(sums[r][v], (Floats){0}) : sums[r][v];
            put(y + r * ldy + v * LANES, &sum);
        }
}

INLINE void dense(const float *x, int64_t ldx, int inputs, const float *weights, int64_t wide, const float *bias,
                  float *y, int64_t ldy, int relu) {
    int64_t h = 0;
    for (; h + 2 * LANES <= wide; h += 2 * LANES)
        for (int r = 0; r < FLOAT_ROWS; r += 8)
            dense_part(8, 2, x + r * ldx, ldx, inputs, weights + h, wide, bias + h, y + r * ldy + h, ldy, relu);
    if (h < wide)
        dense_part(FLOAT_ROWS, 1, x, ldx, inputs, weights + h, wide, bias + h, y + h, ldy, relu);
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
    const int64_t of_experts = m->experts * up_to(m->widths[0], LANES);
    float *scratch = zeroed(4 * (FLOAT_ROWS * (all + 2 * widest) + of_experts));
    if (!scratch)
        return 0;
    float *by_rows = scratch, *between[2] = {scratch + FLOAT_ROWS * all, scratch + FLOAT_ROWS * (all + widest)};
    float *as_floats = scratch + FLOAT_ROWS * (all + 2 * widest);
    const int64_t share_stride = share_rows == 1 ? 0 : all, of_row = (int64_t)m->experts * m->widths[0];
    for (int64_t start = 0; start < rows; start += FLOAT_ROWS) {
        const int block = rows - start < FLOAT_ROWS ? (int)(rows - start) : FLOAT_ROWS;
        block_shares(m, shares + start * share_stride, share_stride, block, by_rows);
        const int64_t mixed = m->mixtures * up_to(m->widths[0], LANES);
        for (int r = 0; r < block; r++)
            mix_row(m, by_rows + r, FLOAT_ROWS, experts + (start + r) * of_row, as_floats, between[0] + r * mixed);
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

/* ---- one layer of bytes: the request's share of first layers, and layers without ReLU */

int pack_byte_linear(ByteLinear *s, const int8_t *weights) {
    const int64_t wide = up_to(s->outputs, LANES);
    char *at = s->memory = zeroed(4 * wide + up_to(s->inputs, TILE_INPUTS) * wide);
    if (!at)
        return 0;
    s->from_zero_point = (int32_t *)at;
    s->weights = (int8_t *)(at + 4 * wide);
    pack_panels(weights, s->inputs, s->outputs, place_as_is, s->weights, s->from_zero_point);
    for (int h = 0; h < s->outputs; h++)
        s->from_zero_point[h] *= -s->zero_point;
    return 1;
}

/* Steps of size `size` as bytes around 128, rounded half to even, clipped; what is left of x stays in it. */
INLINE void bytes_of(float *x, int64_t count, float size, uint8_t *bytes) {
    for (int64_t k = 0; k < count; k += LANES) {
        Floats v, limit;
        get(&v, x + k);
        Floats steps = v / size;
        limit = (Floats){0} - 128.0f;
        steps = larger(steps, limit);
        limit = (Floats){0} - 127.0f;
        steps = -larger(-steps, limit);
        steps = (steps + 12582912.0f) - 12582912.0f;
        v -= steps * size;
        put(x + k, &v);
        const Ints whole = __builtin_convertvector(steps, Ints) + 128;
        for (int i = 0; i < LANES; i++)
            bytes[k + i] = (uint8_t)whole[i];
    }
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
AVX512 static inline void two_rows_vnni(const uint8_t *high, const uint8_t *low, int64_t deep, const int8_t *panel,
                                        int32_t *sums) {
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
#else
#define two_rows_vnni two_rows_portable
#endif

INLINE int request_share(int vnni, const ByteLinear *s, const float *x, const float *worth, const float *bias,
                         float *y) {
    const int64_t deep = up_to(s->inputs, TILE_INPUTS);
    float *left = aligned(6 * deep);
    if (!left)
        return 0;
    uint8_t *high = (uint8_t *)(left + deep), *low = high + deep;
    const float coarse = 256.0f * s->step, fine = s->step;
    memset(left + s->inputs, 0, 4 * (deep - s->inputs));
    memcpy(left, x, 4 * s->inputs);
    bytes_of(left, deep, coarse, high);
    bytes_of(left, deep, fine, low);
    for (int h = 0; h < s->outputs; h += LANES) {
        int32_t sums[2][LANES];
        float one[LANES] = {0}, more[LANES] = {0};
        const int lanes = s->outputs - h < LANES ? s->outputs - h : LANES;
        memcpy(sums[0], s->from_zero_point + h, sizeof sums[0]);
        memcpy(sums[1], s->from_zero_point + h, sizeof sums[1]);
        memcpy(one, worth + h, 4 * lanes);
        memcpy(more, bias + h, 4 * lanes);
        (vnni ? two_rows_vnni : two_rows_portable)(high, low, deep, s->weights + h * deep, sums[0]);
        for (int i = 0; i < LANES; i++)
            one[i] = coarse * ((float)sums[0][i] * one[i]) + fine * ((float)sums[1][i] * one[i]) + more[i];
        memcpy(y + h, one, 4 * lanes);
    }
    free(left);
    return 1;
}

#if X86
AVX512 static int request_share_avx512(const ByteLinear *s, const float *x, const float *worth, const float *bias,
                                       float *y) {
    return request_share(1, s, x, worth, bias, y);
}
#endif

int run_request_share(const ByteLinear *s, const float *x, const float *worth, const float *bias, float *y) {
#if X86
    if (instructions_in_use() >= AVX512_VNNI)
        return request_share_avx512(s, x, worth, bias, y);
#endif
    return request_share(0, s, x, worth, bias, y);
}

/* Four bytes of a row from k on; zeros beyond its end. */
INLINE int32_t four_of(const uint8_t *row, int inputs, int k) {
    int32_t four = 0;
    memcpy(&four, row + k, inputs - k < 4 ? inputs - k : 4);
    return four;
}

#if X86
AVX512 static void byte_linear_vnni(const ByteLinear *s, int64_t rows, const uint8_t *x, const float *worth,
                                    const float *bias, float *y) {
    enum { ROWS = 8 };
    const int64_t deep = up_to(s->inputs, TILE_INPUTS);
    const int whole_fours = s->inputs / 4 * 4;
    for (int h = 0; h < s->outputs; h += LANES) {
        const int lanes = s->outputs - h < LANES ? s->outputs - h : LANES;
        const __mmask16 mask = (__mmask16)((1u << lanes) - 1);
        const __m512 step = _mm512_maskz_loadu_ps(mask, worth + h), more = _mm512_maskz_loadu_ps(mask, bias + h);
        const int8_t *panel = s->weights + h * deep;
        for (int64_t start = 0; start < rows; start += ROWS) {
            __m512i sums[ROWS];
            const uint8_t *from[ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                sums[r] = _mm512_loadu_si512(s->from_zero_point + h);
                from[r] = x + (start + r < rows ? start + r : rows - 1) * s->inputs;
            }
            for (int k = 0; k < whole_fours; k += 4) {
                const __m512i weights = _mm512_load_si512(panel + k * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++)
                    sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_set1_epi32(four_of(from[r], k + 4, k)), weights);
            }
            if (whole_fours < s->inputs) {
                const __m512i weights = _mm512_load_si512(panel + whole_fours * LANES);
                for (int r = 0; r < ROWS; r++) {
                    const __m512i four = _mm512_set1_epi32(four_of(from[r], s->inputs, whole_fours));
                    sums[r] = _mm512_dpbusd_epi32(sums[r], four, weights);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
                if (start + r < rows)
                    _mm512_mask_storeu_ps(y + (start + r) * s->outputs + h, mask,
                                          _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), step, more));
        }
    }
}
#endif

static void byte_linear_portable(const ByteLinear *s, int64_t rows, const uint8_t *x, const float *worth,
                                 const float *bias, float *y) {
    const int64_t deep = up_to(s->inputs, TILE_INPUTS);
    for (int64_t r = 0; r < rows; r++, x += s->inputs, y += s->outputs)
        for (int h = 0; h < s->outputs; h++) {
            const int8_t *panel = s->weights + h / LANES * LANES * deep + h % LANES * 4;
            int32_t sum = s->from_zero_point[h];
            for (int k = 0; k < s->inputs; k++)
                sum += (int32_t)x[k] * panel[k / 4 * 4 * LANES + k % 4];
            y[h] = (float)sum * worth[h] + bias[h];
        }
}

void run_byte_linear(const ByteLinear *s, int64_t rows, const uint8_t *x, const float *worth, const float *bias, float *y) {
#if X86
    if (instructions_in_use() >= AVX512_VNNI) {
        byte_linear_vnni(s, rows, x, worth, bias, y);
        return;
    }
#endif
    byte_linear_portable(s, rows, x, worth, bias, y);
}

/* ---- rows of tables */

int64_t run_gather_bytes(int64_t rows, int columns, int width, int64_t table_rows, const int32_t *codes,
                         const int32_t *offsets, const uint8_t *table, uint8_t *y) {
    enum { AHEAD = 8 };
    const int64_t all = rows * columns;
    for (int64_t i = 0; i < rows; i++)
        for (int c = 0; c < columns; c++) {
            const int64_t at = i * columns + c, row = (int64_t)codes[at] + offsets[c];
            if (row < 0 || row >= table_rows)
                return at;
            if (at + AHEAD < all) {
                const int64_t later = (int64_t)codes[at + AHEAD] + offsets[(c + AHEAD) % columns];
                if (later >= 0 && later < table_rows)
                    __builtin_prefetch(table + later * width);
            }
            memcpy(y + at * width, table + row * width, width);
        }
    return -1;
}

/* ---- the head */

INLINE Floats sigmoid(Floats x) {
    const Ints negative = x < 0.0f;
    const Floats e = exponential((Floats)((Ints)x | INT32_MIN));
    const Floats s = 1.0f / (1.0f + e), other = e * s;
    return (Floats)(((Ints)other & negative) | ((Ints)s & ~negative));
}

INLINE void sigmoids(const float *x, int64_t count, float *y) {
    Floats v;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        get(&v, x + i);
        v = sigmoid(v);
        put(y + i, &v);
    }
    if (i < count) {
        v = (Floats){0};
        memcpy(&v, x + i, 4 * (count - i));
        v = sigmoid(v);
        memcpy(y + i, &v, 4 * (count - i));
    }
}

INLINE int latent_head(const LatentHead *head, int64_t rows, int64_t logit_rows, const float *logits, const float *h,
                       const float *bounds, float *p, float *p_joint, float *p_up) {
    const int tasks = head->tasks, both = 2 * tasks;
    float *given = aligned(4 * (logit_rows * both + both + rows));
    if (!given)
        return 0;
    float *one = given + logit_rows * both, *p_down = one + both;
    sigmoids(logits, logit_rows * both, given);
    for (int64_t n = 0; n < rows; n++)
        p_down[n] = -h[n];
    sigmoids(p_down, rows, p_down);
    sigmoids(h, rows, p_up);
    for (int64_t n = 0; n < rows; n++) {
        const float *a_and_b = given + (logit_rows == 1 ? 0 : n * both);
        const float u = p_up[n], not_u = p_down[n];
        for (int i = 0; i < both; i++)
            one[i] = a_and_b[i] * bounds[i];
        for (int i = 0; head->chains && i < tasks; i++) {
            const int task = head->order[i], parent = head->parents[task];
            if (parent >= 0) {
                one[task] *= one[parent];
                one[tasks + task] *= one[tasks + parent];
            }
        }
        for (int t = 0; t < tasks; t++) {
            const float joint = one[t] * u;
            p_joint[n * tasks + t] = joint;
            p[n * tasks + t] = joint + one[tasks + t] * not_u;
        }
    }
    free(given);
    return 1;
}

#if X86
AVX512 static int latent_head_avx512(const LatentHead *head, int64_t rows, int64_t logit_rows, const float *logits,
                                     const float *h, const float *bounds, float *p, float *p_joint, float *p_up) {
    return latent_head(head, rows, logit_rows, logits, h, bounds, p, p_joint, p_up);
}
#endif

int run_latent_head(const LatentHead *head, int64_t rows, int64_t logit_rows, const float *logits, const float *h,
                    const float *bounds, float *p, float *p_joint, float *p_up) {
#if X86
    if (instructions_in_use() >= AVX512_VNNI)
        return latent_head_avx512(head, rows, logit_rows, logits, h, bounds, p, p_joint, p_up);
#endif
    return latent_head(head, rows, logit_rows, logits, h, bounds, p, p_joint, p_up);
}
