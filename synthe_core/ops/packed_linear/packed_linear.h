// Products of packed 4- and 8-bit codes with rows of 8-bit codes. Layout: quantization/packed.py.
//
//     y = factor sum_b d_b ( s_b sum_j c_bj q_bj + o_b sum_j q_bj )      b: blocks of 32 columns
//
// Eight outputs are computed together. The sums of a block are exact integers, those over blocks are added in order: a
// row's result does not depend on the rows or outputs beside it.
#pragma once

#include <float.h>

#include "../half.h"
#include "../lanes.h"

enum { BLOCK = 32, STEPS = 8 };  // columns of a block; fours of columns of a block. A group has LANES outputs.

typedef struct {
    const uint8_t *codes;     // [groups, blocks, 8, 8, 4], or half of it for 4 bits
    const uint16_t *scales;   // float16 [groups, blocks, parts, 8]
    const uint16_t *offsets;  // float16 [groups, blocks, 8], or NULL
    float factor;
    int64_t outputs, blocks, bits, parts;
    int64_t apart;            // blocks from a group's first one to the next group's
} matrix;

typedef struct {
    const int8_t *codes;  // [rows, blocks, 32]
    const float *scales;  // [rows, blocks]
    const float *sums;    // [rows, blocks]: scale times sum of the codes
    const int32_t *counts;  // [rows, blocks, 2]: sum of the codes of each half of a block
} input;

// A row of columns as codes: scale = max |x| / 127 of each block.
static inline void quantize_row(const float *x, int64_t columns, int64_t blocks, int8_t *q, float *scales, float *sums,
                                int32_t *counts) {
    for (int64_t b = 0; b < blocks; b++) {
        int64_t count = columns - b * BLOCK < BLOCK ? columns - b * BLOCK : BLOCK;
        float part[BLOCK] = {0}, largest = 0;
        memcpy(part, x + b * BLOCK, (size_t)count * sizeof(float));
        int is_finite = 1;
        for (int j = 0; j < BLOCK; j++) {
            float size = fabsf(part[j]);
            largest = largest < size ? size : largest;
            is_finite &= size <= FLT_MAX;
        }
        float scale = is_finite ? largest / 127 : NAN, inverse = scale >= FLT_MIN ? 1 / scale : 0;
        int32_t *sum = counts + 2 * b;
        sum[0] = sum[1] = 0;
        for (int j = 0; j < BLOCK; j++) {
            float ratio = is_finite ? part[j] * inverse : 0;
            int code = (int)(ratio + copysignf(0.5f, ratio));
            q[b * BLOCK + j] = (int8_t)code;
            sum[j >= BLOCK / 2] += code;
        }
        scales[b] = scale;
        sums[b] = scale * (float)(sum[0] + sum[1]);
    }
}

#ifdef VECTOR
typedef __m256i words;
static inline lanes real(words v) { return _mm256_cvtepi32_ps(v); }
static inline words four(const int8_t *q) {  // the same four columns for every output
    int32_t v;
    memcpy(&v, q, 4);
    return _mm256_set1_epi32(v);
}
static inline words bytes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline words low(words v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
static inline words high(words v) { return low(_mm256_srli_epi16(v, 4)); }
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define DOT(sum, u, s) _mm256_dpbusd_epi32(sum, u, s)
#elif defined(__AVXVNNI__)
#define DOT(sum, u, s) _mm256_dpbusd_avx_epi32(sum, u, s)
#endif
// Of codes of 4 bits: a sum over a block stays within 16 bits, 8 * 2 * 15 * 127 at most.
#ifdef DOT
static inline words add_nibbles(words sum, words w, words x) { return DOT(sum, w, x); }
static inline words sum_nibbles(words sum) { return sum; }
static inline words add_bytes(words sum, words w, words x) {
    return DOT(sum, _mm256_sign_epi8(w, w), _mm256_sign_epi8(x, w));
}
#else
static inline words add_nibbles(words sum, words w, words x) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
}
static inline words sum_nibbles(words sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
static inline words add_bytes(words sum, words w, words x) {
    words pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(w, w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
static inline words none(void) { return _mm256_setzero_si256(); }
#else
typedef union { int8_t b[BLOCK]; int32_t v[LANES]; } words;
static inline lanes real(words w) { EACH((float)w.v[l]); }
static inline words four(const int8_t *q) { words w; for (int l = 0; l < LANES; l++) memcpy(w.b + 4 * l, q, 4); return w; }
static inline words bytes(const uint8_t *p) { words w; memcpy(w.b, p, BLOCK); return w; }
static inline words low(words w) { for (int j = 0; j < BLOCK; j++) w.b[j] &= 15; return w; }
static inline words high(words w) { for (int j = 0; j < BLOCK; j++) w.b[j] = (int8_t)((uint8_t)w.b[j] >> 4); return w; }
static inline words add_bytes(words sum, words w, words x) {
    for (int j = 0; j < BLOCK; j++) sum.v[j / 4] += w.b[j] * x.b[j];
    return sum;
}
static inline words add_nibbles(words sum, words w, words x) { return add_bytes(sum, w, x); }
static inline words sum_nibbles(words sum) { return sum; }
static inline words none(void) { words w; memset(&w, 0, sizeof w); return w; }
#endif

enum { LINE = 64, AHEAD = 3072 };  // bytes: the processor's own reading ahead ends with a page

// Memory that is read after a product, and fetched while it computes: a few lines a block.
typedef struct {
    const char *from;
    int64_t lines;
} stretch;

typedef struct {
    const stretch *at;
    int64_t line, left, each;  // of a stretch, of all, of a block
} fetcher;

static inline void fetch(fetcher *own) {
    for (int64_t i = 0; i < own->each && own->left; i++, own->left--) {
        __builtin_prefetch(own->at->from + LINE * own->line, 0, 2);
        if (++own->line == own->at->lines) own->at++, own->line = 0;
    }
}

// The share of a span.
static inline fetcher part_of(const stretch *later, int64_t count, int64_t span, int64_t spans, int64_t blocks) {
    fetcher own = {later, 0, 0, 0};
    int64_t total = 0, first, last;
    for (int64_t i = 0; i < count; i++) total += later[i].lines;
    first = total * span / spans, last = total * (span + 1) / spans;
    own.left = last - first, own.each = (own.left + blocks - 1) / blocks;
    for (own.line = first; own.left && own.line >= own.at->lines; own.at++) own.line -= own.at->lines;
    return own;
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "wide_tiles.h"
#else
enum { GROUPS = 1, MOST_ROWS = 4 };  // groups and rows that are computed together: as many as the registers hold
typedef lanes sums;

// The exact sums of a block's products: R rows, `stride` codes apart, times the outputs of a group.
#define DOTS(name, R, BITS, PARTS)                                                                                     \
    static inline void name(const uint8_t *codes, const int8_t *q, int64_t stride, words dot[PARTS][R]) {              \
        for (int p = 0; p < PARTS; p++)                                                                                \
            for (int r = 0; r < R; r++) dot[p][r] = none();                                                            \
        if (BITS == 4)                                                                                                 \
            for (int j = 0; j < STEPS / 2; j++) {                                                                      \
                words both = bytes(codes + j * BLOCK), one = low(both), two = high(both);                              \
                for (int r = 0; r < R; r++) {                                                                          \
                    dot[0][r] = add_nibbles(dot[0][r], one, four(q + r * stride + 4 * j));                             \
                    dot[0][r] = add_nibbles(dot[0][r], two, four(q + r * stride + 16 + 4 * j));                        \
                }                                                                                                      \
            }                                                                                                          \
        else                                                                                                           \
            for (int j = 0; j < STEPS; j++) {                                                                          \
                words one = bytes(codes + j * BLOCK);                                                                  \
                for (int r = 0; r < R; r++) {                                                                          \
                    int p = j * PARTS / STEPS;                                                                         \
                    dot[p][r] = add_bytes(dot[p][r], one, four(q + r * stride + 4 * j));                               \
                }                                                                                                      \
            }                                                                                                          \
        for (int r = 0; BITS == 4 && r < R; r++) dot[0][r] = sum_nibbles(dot[0][r]);                                   \
    }

// R rows from `row` on times the outputs of a group.
#define TILE(name, R, BITS, PARTS)                                                                                     \
    DOTS(dots_of_##name, R, BITS, PARTS)                                                                               \
    static inline void name(const matrix *w, const input *x, int64_t row, int64_t group, lanes *sum, fetcher *later) { \
        int64_t n = w->blocks, start = group * w->apart;                                                               \
        const uint8_t *codes = w->codes + start * BLOCK * BITS;                                                        \
        const uint16_t *scales = w->scales + start * PARTS * LANES;                                                    \
        const uint16_t *offsets = w->offsets ? w->offsets + start * LANES : NULL;                                      \
        for (int r = 0; r < R; r++) sum[r] = fill(0);                                                                  \
        for (int64_t b = 0; b < n; b++) {                                                                              \
            const float *d = x->scales + row * n + b, *total = x->sums + row * n + b;                                  \
            words dot[PARTS][R];                                                                                       \
            dots_of_##name(codes, x->codes + (row * n + b) * BLOCK, n * BLOCK, dot);                                   \
            for (int p = 0; p < PARTS; p++) {                                                                          \
                lanes s = halves(scales + p * LANES);                                                                  \
                for (int r = 0; r < R; r++) sum[r] = fma8(real(dot[p][r]), times(s, fill(d[r * n])), sum[r]);          \
            }                                                                                                          \
            if (offsets) {                                                                                             \
                lanes o = halves(offsets + b * LANES);                                                                 \
                for (int r = 0; r < R; r++) sum[r] = fma8(o, fill(total[r * n]), sum[r]);                              \
            }                                                                                                          \
            for (int l = 0; l < BLOCK * BITS; l += LINE) __builtin_prefetch(codes + AHEAD + l, 0, 1);                  \
            fetch(later);                                                                                              \
            codes += BLOCK * BITS;                                                                                     \
            scales += PARTS * LANES;                                                                                   \
        }                                                                                                              \
        for (int r = 0; r < R; r++) sum[r] = times(sum[r], fill(w->factor));                                           \
    }

// The outputs of a group, into a row of y.
static inline void put(float *y, int64_t outputs, int64_t group, lanes v) {
    put_lanes(y + group * LANES, v, outputs - group * LANES);
}
#endif

// Groups first to last of all rows.
#define SPAN(bits, parts)                                                                                          \
    TILE(one_##bits##_##parts, 1, bits, parts)                                                                     \
    TILE(two_##bits##_##parts, 2, bits, parts)                                                                     \
    TILE(three_##bits##_##parts, 3, bits, parts)                                                                   \
    TILE(four_##bits##_##parts, 4, bits, parts)                                                                    \
    TILE(six_##bits##_##parts, 6, bits, parts)                                                                     \
    TILE(eight_##bits##_##parts, 8, bits, parts)                                                                   \
    static void span_##bits##_##parts(const matrix *w, const input *x, int64_t rows, int64_t first, int64_t last,  \
                                      float *y, int64_t stride, fetcher *later) {                                  \
        sums sum[MOST_ROWS];                                                                                       \
        for (int64_t r = 0; r < rows;) {                                                                           \
            int64_t left = rows - r < MOST_ROWS ? rows - r : MOST_ROWS;                                            \
            int64_t count = left == 7 ? 6 : left == 5 ? 4 : left;                                                  \
            for (int64_t g = first; g < last; g += GROUPS) {                                                       \
                if (count == 1) one_##bits##_##parts(w, x, r, g, sum, later);                                      \
                else if (count == 2) two_##bits##_##parts(w, x, r, g, sum, later);                                 \
                else if (count == 3) three_##bits##_##parts(w, x, r, g, sum, later);                               \
                else if (count == 4) four_##bits##_##parts(w, x, r, g, sum, later);                                \
                else if (count == 6) six_##bits##_##parts(w, x, r, g, sum, later);                                 \
                else eight_##bits##_##parts(w, x, r, g, sum, later);                                               \
                for (int64_t i = 0; i < count; i++) put(y + (r + i) * stride, w->outputs, g, sum[i]);              \
            }                                                                                                      \
            r += count;                                                                                            \
        }                                                                                                          \
    }
SPAN(4, 1)
SPAN(8, 1)
SPAN(8, 2)

enum { SPAN_BYTES = 1 << 16 };  // codes of the outputs that all rows read before the next ones

// W x of all rows; a row of y is `stride` long. later: `count` stretches of memory that are read next.
static inline void product(const matrix *w, const input *x, int64_t rows, float *y, int64_t stride, const stretch *later,
                           int64_t count) {
    int64_t groups = (w->outputs + LANES - 1) / LANES, step = SPAN_BYTES / (w->blocks * BLOCK * w->bits);
    step = step < GROUPS ? GROUPS : step / GROUPS * GROUPS;
    int64_t spans = (groups + step - 1) / step;
#pragma omp parallel for schedule(static) if (spans > 1)
    for (int64_t s = 0; s < spans; s++) {
        int64_t first = s * step, last = first + step < groups ? first + step : groups;
        fetcher own = part_of(later, count, s, spans, (last - first + GROUPS - 1) / GROUPS * w->blocks);
        if (w->bits == 4) span_4_1(w, x, rows, first, last, y, stride, &own);
        else if (w->parts == 1) span_8_1(w, x, rows, first, last, y, stride, &own);
        else span_8_2(w, x, rows, first, last, y, stride, &own);
    }
}
