// Causal attention within a window of float32 keys and values [B, S, G, K], of the last T of S tokens or of some of
// them: see attend.h.
#include <stdlib.h>

#include "attend.h"

typedef struct {
    const float *q;  // [N, H, K]: the queries of one row
    float *y;
    const int64_t *positions;  // [N]: theirs among the S tokens; NULL: the last ones
    const int64_t *counts;     // [S + 1]: how many entries before a position are real
    int64_t time, heads, groups, past, window;  // time: N
    float scale, cap;
} pass;

static void range(const pass *p, int64_t t, int64_t *first, int64_t *last) {
    int64_t position = p->positions ? p->positions[t] : p->past + t, from = position + 1 - p->window;
    *first = p->counts[from > 0 ? from : 0];
    *last = p->counts[position + 1];
}

// Keys in blocks of COLUMNS, channel by channel: [blocks, padded, COLUMNS], with zeros around.
static void transpose(const entries *of, int64_t count, int64_t padded, float *out) {
    int64_t blocks = (count + COLUMNS - 1) / COLUMNS;
    for (int64_t b = 0; b < blocks; b++) {
        float *block = out + b * padded * COLUMNS;
        for (int64_t j = 0; j < COLUMNS; j++) {
            int64_t i = b * COLUMNS + j;
            const float *key = i < count ? of->keys + row_of(of, i) : NULL;
            for (int64_t c = 0; c < padded; c++) block[c * COLUMNS + j] = key && c < of->size ? key[c] : 0;
        }
    }
}

// Queries n to n + 3 of group g, token by token and head by head. room: for four padded queries and four rows of scores.
static void tile(const pass *p, const entries *of, const float *columns, int64_t padded, int64_t g, int64_t n,
                 float *room, int64_t longest) {
    int64_t rep = p->heads / p->groups, number = p->time * rep, size = of->size, lo = INT64_MAX, hi = 0;
    reader each[TOGETHER];
    float *out[TOGETHER], *scores = room + TOGETHER * padded;
    for (int r = 0; r < TOGETHER; r++) {
        int64_t own = n + r < number ? n + r : number - 1, t = own / rep, at = (t * p->heads + g * rep + own % rep) * size;
        range(p, t, &each[r].first, &each[r].last);
        each[r].y = p->y + at;
        for (int64_t c = 0; c < padded; c++) room[r * padded + c] = c < size ? p->q[at + c] : 0;
        lo = each[r].first < lo ? each[r].first : lo;
        hi = each[r].last > hi ? each[r].last : hi;
    }
    int64_t start = lo / COLUMNS * COLUMNS;
    for (int64_t i = start; i < hi; i += COLUMNS) {
        for (int r = 0; r < TOGETHER; r++) out[r] = scores + r * longest + i - start;
        four_scores(columns + i * padded, room, padded, p->scale, out);
    }
    for (int r = 0; r < TOGETHER; r++) {
        int64_t count = each[r].last - each[r].first;
        each[r].scores = scores + r * longest + each[r].first - start;
        each[r].inverse = count ? 1 / exponentials(each[r].scores, count, p->cap) : 0;
    }
    int64_t c = 0;
    for (; c + 2 * LANES <= size; c += 2 * LANES) four_by_sixteen(of, each, c);
    for (; c < size; c += LANES) four_by_eight(of, each, c);
}

// All queries of one row of the batch. columns: room for the transposed keys of every group. Returns 1 without memory.
static int row(const pass *p, const float *keys, const float *values, const int64_t *places, int64_t count,
               int64_t size, float *columns) {
    int64_t rep = p->heads / p->groups, padded = (size + LANES - 1) / LANES * LANES, width = p->groups * size;
    int64_t longest = (count / COLUMNS + 2) * COLUMNS, failed = 0;
    int64_t tiles = (p->time * rep + TOGETHER - 1) / TOGETHER, own = longest * padded, single = p->time == 1;
    if (!single) {
#pragma omp parallel for schedule(static)
        for (int64_t g = 0; g < p->groups; g++) {
            entries of = {keys + g * size, values + g * size, places, width, size};
            transpose(&of, count, padded, columns + g * own);
        }
    }
#pragma omp parallel if (p->groups * tiles > 1 && count * p->time > 64)
    {
        float *room = malloc((size_t)(TOGETHER * (padded + longest)) * sizeof(float));
        if (!room) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 4) collapse(2)
        for (int64_t g = 0; g < p->groups; g++)
            for (int64_t n = 0; n < (single ? rep : tiles); n++) {
                if (!room) continue;
                entries of = {keys + g * size, values + g * size, places, width, size};
                if (!single) {
                    tile(p, &of, columns + g * own, padded, g, n * TOGETHER, room, longest);
                    continue;
                }
                int64_t first, last, at = (g * rep + n) * size;
                range(p, 0, &first, &last);
                attend(&of, p->q + at, first, last, p->scale, p->cap, p->y + at, room);
            }
        free(room);
    }
    return (int)failed;
}

// valid: [B, S], or NULL. starts, positions: [B + 1], [N] of the queries q [N, H, K], row by row; NULL: of the last
// `time` tokens of every row. Returns 1 if there is no memory.
int64_t native_attention(const float *q, const float *k, const float *v, const uint8_t *valid, const int64_t *starts,
                         const int64_t *positions, float *y, double scale, double cap, int64_t batch, int64_t time,
                         int64_t length, int64_t heads, int64_t groups, int64_t size, int64_t window) {
    int64_t padded = (size + LANES - 1) / LANES * LANES, most = (length / COLUMNS + 2) * COLUMNS;
    int64_t *counts = malloc((size_t)(2 * length + 1) * sizeof(int64_t));
    float *columns = time > 1 ? malloc((size_t)(groups * most * padded) * sizeof(float)) : NULL;
    int64_t failed = !counts || (time > 1 && !columns);
    for (int64_t b = 0; b < batch && !failed; b++) {
        int64_t count = 0, *places = counts + length + 1;
        for (int64_t i = 0; i < length; i++) {
            counts[i] = count;
            if (!valid || valid[b * length + i]) places[count++] = i;
        }
        counts[length] = count;
        int64_t start = starts ? starts[b] : b * time, own = starts ? starts[b + 1] - start : time;
        int64_t from = start * heads * size, at = b * length * groups * size;
        pass p = {q + from, y + from, positions ? positions + start : NULL, counts, own, heads, groups, length - time,
                  window, (float)scale, (float)cap};
        if (own) failed = row(&p, k + at, v + at, count < length ? places : NULL, count, size, columns);
    }
    free(counts);
    free(columns);
    return failed;
}
