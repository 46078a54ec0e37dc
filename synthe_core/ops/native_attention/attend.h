// Softmax attention of one query, or of four side by side, to entries in order:
//
//     y = sum_i softmax_i(f(q . k_i scale)) v_i        f(a) = cap tanh(a / cap), or a where cap is 0
//
// The sums of a query follow its own entries, the first of them first. Its numbers depend on nothing else: neither on
// the queries beside it, nor on how many entries there are before its first or after its last.
#pragma once

#include "../lanes.h"

#include "../exponential.h"

typedef struct {
    const float *keys, *values;  // rows of `size` numbers
    const int64_t *places;       // entry i is row places[i]; NULL: row i
    int64_t stride, size;        // numbers from one row to the next
} entries;

enum { TOGETHER = 4, COLUMNS = 16, WIDE = 8 };  // queries of a tile; keys of a transposed block; lanes of one query

static inline int64_t row_of(const entries *of, int64_t i) { return (of->places ? of->places[i] : i) * of->stride; }

// tanh within 1e-7: of small numbers by its series, since a difference would cancel.
static inline float bounded(float x) {
    float size = fabsf(x), square = x * x, e = exp_float(-2 * size);
    float series = size * (1 + square * (-1 / 3.0f + square * (2 / 15.0f + square * (-17 / 315.0f + square * (62 / 2835.0f)))));
    return copysignf(size < 0.25f ? series : (1 - e) / (1 + e), x);
}

// Scores become e^(f(score) - largest); returns their sum, NaN if one of them is.
static __attribute__((noinline)) float exponentials(float *scores, int64_t count, float cap) {
    float largest[LANES], most = -INFINITY;
    lanes sum = fill(0);
    int64_t i = 0;
    if (cap > 0)
        for (int64_t n = 0; n < count; n++) scores[n] = scores[n] != scores[n] ? NAN : cap * bounded(scores[n] / cap);
    for (int l = 0; l < LANES; l++) largest[l] = -INFINITY;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++)
            largest[l] = scores[i + l] > largest[l] || scores[i + l] != scores[i + l] ? scores[i + l] : largest[l];
    for (int l = 0; i + l < count; l++)
        largest[l] = scores[i + l] > largest[l] || scores[i + l] != scores[i + l] ? scores[i + l] : largest[l];
    for (int l = 0; l < LANES; l++) most = largest[l] > most || largest[l] != largest[l] ? largest[l] : most;
    if (most != most) return NAN;
    for (i = 0; i < count; i++) scores[i] = exp_float(scores[i] - most);
    for (i = 0; i + LANES <= count; i += LANES) sum = plus(sum, eight(scores + i));
    if (i < count) sum = plus(sum, rest_of(scores + i, count - i));
    return total(sum);
}

// Entries first to last of one query. scores: room for last - first numbers. Without entries y is zeros.
static inline void attend(const entries *of, const float *q, int64_t first, int64_t last, float scale, float cap,
                          float *y, float *scores) {
    int64_t count = last - first, size = of->size, c = 0;
    for (int64_t i = 0; i < count; i++) scores[i] = dot(q, of->keys + row_of(of, first + i), size) * scale;
    float inverse = count ? 1 / exponentials(scores, count, cap) : 0;
    for (; c + WIDE * LANES <= size; c += WIDE * LANES) {
        lanes sum[WIDE];
        for (int w = 0; w < WIDE; w++) sum[w] = fill(0);
        for (int64_t i = 0; i < count; i++) {
            const float *v = of->values + row_of(of, first + i) + c;
            for (int w = 0; w < WIDE; w++) sum[w] = fma8(eight(v + w * LANES), fill(scores[i]), sum[w]);
        }
        for (int w = 0; w < WIDE; w++) store(y + c + w * LANES, times(sum[w], fill(inverse)));
    }
    for (; c < size; c += LANES) {
        lanes sum = fill(0);
        for (int64_t i = 0; i < count; i++)
            sum = fma8(get_lanes(of->values + row_of(of, first + i) + c, size - c), fill(scores[i]), sum);
        put_lanes(y + c, times(sum, fill(inverse)), size - c);
    }
}

// Sixteen keys, channel by channel, of four queries: out[r] = q_r . k scale, added up as `dot` does. padded: channels
// of both, a multiple of eight.
static inline void four_scores(const float *block, const float *q, int64_t padded, float scale, float *const *out) {
    static const int order[LANES] = {0, 4, 2, 6, 1, 5, 3, 7};  // of `total`
    lanes pair[TOGETHER][2], quad[TOGETHER][2], half[TOGETHER][2];
#pragma GCC unroll 8
    for (int j = 0; j < LANES; j++) {
        lanes sum[TOGETHER][2];
        for (int r = 0; r < TOGETHER; r++) sum[r][0] = sum[r][1] = fill(0);
        for (int64_t c = order[j]; c < padded; c += LANES) {
            lanes a = eight(block + c * COLUMNS), b = eight(block + c * COLUMNS + LANES);
            IN_REGISTER(a);
            IN_REGISTER(b);
            for (int r = 0; r < TOGETHER; r++) {
                lanes each = fill(q[r * padded + c]);
                sum[r][0] = fma8(each, a, sum[r][0]);
                sum[r][1] = fma8(each, b, sum[r][1]);
            }
        }
        for (int r = 0; r < TOGETHER; r++)
            for (int w = 0; w < 2; w++) {
                lanes v = sum[r][w];
                if (j % 2 == 0) { pair[r][w] = v; continue; }
                v = plus(pair[r][w], v);
                if (j % 4 == 1) { quad[r][w] = v; continue; }
                v = plus(quad[r][w], v);
                if (j == 3) half[r][w] = v;
                else store(out[r] + w * LANES, times(plus(half[r][w], v), fill(scale)));
            }
    }
}

typedef struct {
    int64_t first, last;  // entries
    float *y, *scores;    // of the first entry
    float inverse;
} reader;

// y of four queries from their scores, N lanes of channels from c on.
#define FOUR_SUMS(name, N)                                                                                             \
    static inline void name(const entries *of, const reader *each, int64_t c) {                                        \
        lanes sum[TOGETHER][N];                                                                                        \
        int64_t from = each[0].first, to = each[0].last, left = of->size - c;                                          \
        for (int r = 1; r < TOGETHER; r++) {                                                                           \
            from = each[r].first > from ? each[r].first : from;                                                        \
            to = each[r].last < to ? each[r].last : to;                                                                \
        }                                                                                                              \
        if (to < from) to = from;                                                                                      \
        for (int r = 0; r < TOGETHER; r++) {                                                                           \
            for (int w = 0; w < N; w++) sum[r][w] = fill(0);                                                           \
            for (int64_t i = each[r].first; i < from && i < each[r].last; i++)                                         \
                for (int w = 0; w < N; w++)                                                                            \
                    sum[r][w] = fma8(get_lanes(of->values + row_of(of, i) + c + w * LANES, left - w * LANES),          \
                                     fill(each[r].scores[i - each[r].first]), sum[r][w]);                              \
        }                                                                                                              \
        for (int64_t i = from; i < to; i++) {                                                                          \
            lanes v[N];                                                                                                \
            for (int w = 0; w < N; w++) {                                                                              \
                v[w] = get_lanes(of->values + row_of(of, i) + c + w * LANES, left - w * LANES);                        \
                IN_REGISTER(v[w]);                                                                                     \
            }                                                                                                          \
            for (int r = 0; r < TOGETHER; r++) {                                                                       \
                lanes e = fill(each[r].scores[i - each[r].first]);                                                     \
                for (int w = 0; w < N; w++) sum[r][w] = fma8(v[w], e, sum[r][w]);                                      \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < TOGETHER; r++) {                                                                           \
            for (int64_t i = to > each[r].first ? to : each[r].first; i < each[r].last; i++)                           \
                for (int w = 0; w < N; w++)                                                                            \
                    sum[r][w] = fma8(get_lanes(of->values + row_of(of, i) + c + w * LANES, left - w * LANES),          \
                                     fill(each[r].scores[i - each[r].first]), sum[r][w]);                              \
            for (int w = 0; w < N; w++)                                                                                \
                put_lanes(each[r].y + c + w * LANES, times(sum[r][w], fill(each[r].inverse)), left - w * LANES);       \
        }                                                                                                              \
    }
FOUR_SUMS(four_by_sixteen, 2)
FOUR_SUMS(four_by_eight, 1)
