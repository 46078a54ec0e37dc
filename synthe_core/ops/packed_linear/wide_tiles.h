// Tiles of packed_linear.h on AVX-512 with VNNI: sixteen outputs together, of two groups. The numbers are those of the
// narrow tiles, to the bit.
#pragma once

enum { GROUPS = 2, MOST_ROWS = 8 };
typedef __m512 sums;
typedef __m512i pair;

static inline pair of_both(const uint8_t *a, const uint8_t *b) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(bytes(a)), bytes(b), 1);
}
static inline pair every_four(const int8_t *q) {
    int32_t v;
    memcpy(&v, q, 4);
    return _mm512_set1_epi32(v);
}
static inline sums halves_of_both(const uint16_t *a, const uint16_t *b) {
    __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(v, _mm_loadu_si128((const __m128i *)b), 1));
}

// The exact sums of a block's products. Codes of 8 bits are multiplied as c + 128, without a sign: 128 sum q is taken off.
#define DOTS(name, R, BITS, PARTS)                                                                                     \
    static inline __attribute__((always_inline)) void name(const uint8_t *a, const uint8_t *b, const int8_t *q,        \
                                                           const int32_t *counts, int64_t n, pair dot[PARTS][R]) {     \
        const pair nibble = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128);                                       \
        for (int p = 0; p < PARTS; p++)                                                                                \
            for (int r = 0; r < R; r++) {                                                                              \
                const int32_t *own = counts + r * n * 2;                                                               \
                int32_t count = PARTS == 2 ? own[p] : own[0] + own[1];                                                 \
                dot[p][r] = _mm512_set1_epi32(BITS == 8 ? -128 * count : 0);                                           \
            }                                                                                                          \
        for (int j = 0; j < STEPS * BITS / 8; j++) {                                                                   \
            pair w = of_both(a + j * BLOCK, b + j * BLOCK);                                                            \
            if (BITS == 4) {                                                                                           \
                pair one = _mm512_and_si512(w, nibble), two = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);       \
                for (int r = 0; r < R; r++) {                                                                          \
                    dot[0][r] = _mm512_dpbusd_epi32(dot[0][r], one, every_four(q + r * n * BLOCK + 4 * j));            \
                    dot[0][r] = _mm512_dpbusd_epi32(dot[0][r], two, every_four(q + r * n * BLOCK + 16 + 4 * j));       \
                }                                                                                                      \
            } else {                                                                                                   \
                int p = j * PARTS / STEPS;                                                                             \
                w = _mm512_xor_si512(w, sign);                                                                         \
                for (int r = 0; r < R; r++)                                                                            \
                    dot[p][r] = _mm512_dpbusd_epi32(dot[p][r], w, every_four(q + r * n * BLOCK + 4 * j));              \
            }                                                                                                          \
        }                                                                                                              \
    }

// R rows from `row` on times the outputs of two groups; of the last one twice where there is only one more.
#define TILE(name, R, BITS, PARTS)                                                                                     \
    DOTS(dots_of_##name, R, BITS, PARTS)                                                                               \
    static inline void name(const matrix *w, const input *x, int64_t row, int64_t group, sums *sum, fetcher *later) {  \
        int64_t n = w->blocks, start = group * w->apart, next = (group + 1) * LANES < w->outputs ? w->apart : 0;       \
        const uint8_t *codes = w->codes + start * BLOCK * BITS, *codes2 = codes + next * BLOCK * BITS;                 \
        const uint16_t *scales = w->scales + start * PARTS * LANES, *scales2 = scales + next * PARTS * LANES;          \
        const uint16_t *offsets = w->offsets ? w->offsets + start * LANES : NULL;                                      \
        for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_ps();                                                      \
        for (int64_t b = 0; b < n; b++) {                                                                              \
            const float *d = x->scales + row * n + b, *total = x->sums + row * n + b;                                  \
            pair dot[PARTS][R];                                                                                        \
            dots_of_##name(codes, codes2, x->codes + (row * n + b) * BLOCK, x->counts + (row * n + b) * 2, n, dot);    \
            for (int p = 0; p < PARTS; p++) {                                                                          \
                sums s = halves_of_both(scales + p * LANES, scales2 + p * LANES);                                      \
                for (int r = 0; r < R; r++) {                                                                          \
                    sums scaled = _mm512_mul_ps(s, _mm512_set1_ps(d[r * n]));                                          \
                    sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p][r]), scaled, sum[r]);                           \
                }                                                                                                      \
            }                                                                                                          \
            if (offsets) {                                                                                             \
                sums o = halves_of_both(offsets + b * LANES, offsets + (b + next) * LANES);                            \
                for (int r = 0; r < R; r++) sum[r] = _mm512_fmadd_ps(o, _mm512_set1_ps(total[r * n]), sum[r]);         \
            }                                                                                                          \
            for (int l = 0; l < BLOCK * BITS; l += LINE) {                                                             \
                __builtin_prefetch(codes + 2 * w->apart * BLOCK * BITS + l, 0, 1);                                     \
                __builtin_prefetch(codes2 + 2 * w->apart * BLOCK * BITS + l, 0, 1);                                    \
            }                                                                                                          \
            fetch(later);                                                                                              \
            codes += BLOCK * BITS, codes2 += BLOCK * BITS;                                                             \
            scales += PARTS * LANES, scales2 += PARTS * LANES;                                                         \
        }                                                                                                              \
        for (int r = 0; r < R; r++) sum[r] = _mm512_mul_ps(sum[r], _mm512_set1_ps(w->factor));                         \
    }

static inline void put(float *y, int64_t outputs, int64_t group, sums v) {
    int64_t left = outputs - group * LANES;
    __mmask16 some = (__mmask16)(left >= 16 ? 0xffff : (1 << left) - 1);
    _mm512_mask_storeu_ps(y + group * LANES, some, v);
}
