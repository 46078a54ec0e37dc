/* The slot memory and its gradient, row by row and token by token.

   The keys of a bank are copied into tiles of 16 slots, [H, J / 16, K, 16], so that one load serves 16 products and
   no sum goes across a register; a tick writes the slots that it changes into both. Up to four tokens between two ticks
   read the same tiles together. A sum of products goes over k in order, whatever the number of tokens.

   For the gradient a tick records the bank's old records. The way back restores them, from the last token to the
   first, while it carries one gradient of the bank. */

#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../subnormals.h"

enum { TILE = 16, TOGETHER = 4, NOTHING = 0, REFINES = 1, OVERWRITES = 2 };

/* rows, tokens, slots, heads, sizes of keys and contents, tokens of a tick, reads, writes, ticks of a row at most */
typedef struct {
    int64_t B, T, J, H, K, V, C, N, W, G;
} sizes;

/* idle: usefulness lost for each idle token */
typedef struct {
    double match, decay, idle;
    int64_t sparsemax;
} policy;

static inline int64_t tiles_of(int64_t J) { return (J + TILE - 1) / TILE; }

#define REAL float
#define EXP expf
#define NAME(function) function##_float
#include "slot_memory.c"
#undef REAL
#undef EXP
#undef NAME
#define REAL double
#define EXP exp
#define NAME(function) function##_double
#include "slot_memory.c"

#else

/* One row: its bank, its keys in tiles, its ages by column [4, J], and the tokens of the frame [C, H, K + V] with
   what is known of them. scores [TOGETHER, tiles, 16] for logits and as many for affinities. refined [J]. */
typedef struct {
    sizes n;
    policy p;
    REAL *bank, *tiles, *scores, *ages, *frame, *strength, *affinity, *nearest;
    int64_t *best;
    uint8_t *refined;
} NAME(row);

int64_t NAME(scratch)(sizes n) { /* REALs of a row's scratch memory, besides its bank and frame */
    return tiles_of(n.J) * TILE * (n.H * n.K + 2 * TOGETHER) + 4 * n.J + 2 * n.C;
}

static void NAME(write_tile)(const NAME(row) * r, int64_t j) {
    const int64_t E = r->n.K + r->n.V, count = tiles_of(r->n.J);
    for (int64_t h = 0; h < r->n.H; h++) {
        REAL *tile = r->tiles + (h * count + j / TILE) * r->n.K * TILE + j % TILE;
        const REAL *key = r->bank + (j * r->n.H + h) * E;
        for (int64_t k = 0; k < r->n.K; k++) tile[k * TILE] = key[k];
    }
}

/* y[i][j] = (add ? y[i][j] : 0) + x[i] . key of slot j, for m texts x; inlined with m constant */
static inline __attribute__((always_inline)) void NAME(products_of)(const REAL *tiles, int64_t count, int64_t K,
                                                                    const REAL *const *x, REAL *y, int m, int add) {
    for (int64_t at = 0; at < count; at++, tiles += K * TILE) {
        REAL sum[TOGETHER][TILE] = {{0}};
        for (int64_t k = 0; k < K; k++)
            for (int i = 0; i < m; i++)
                for (int w = 0; w < TILE; w++) sum[i][w] += x[i][k] * tiles[k * TILE + w];
        for (int i = 0; i < m; i++) {
            REAL *out = y + (i * count + at) * TILE;
            for (int w = 0; w < TILE; w++) out[w] = add ? out[w] + sum[i][w] : sum[i][w];
        }
    }
}

static void NAME(products)(const NAME(row) * r, int64_t h, const REAL *const *x, REAL *y, int m, int add) {
    const int64_t count = tiles_of(r->n.J), K = r->n.K;
    const REAL *tiles = r->tiles + h * count * K * TILE;
    if (m == 1) NAME(products_of)(tiles, count, K, x, y, 1, add);
    else NAME(products_of)(tiles, count, K, x, y, TOGETHER, add);
}

static inline int NAME(some_above)(const REAL *x, int64_t count, REAL bound) {
    int above = 0;
    for (int64_t i = 0; i < count; i++) above |= x[i] > bound;
    return above;
}

/* The `most` largest of x [J], the largest first and of equal ones the first; returns how many there are. */
static int64_t NAME(largest)(const REAL *x, int64_t J, int64_t most, REAL *value, int64_t *index) {
    int64_t count = 0;
    for (int64_t from = 0; from < J; from += TILE) {
        const int64_t end = from + TILE < J ? from + TILE : J;
        if (count == most && !NAME(some_above)(x + from, end - from, value[most - 1])) continue;
        for (int64_t j = from; j < end; j++) {
            if (count == most && !(x[j] > value[most - 1])) continue;
            int64_t at = count < most ? count++ : most - 1;
            for (; at > 0 && x[j] > value[at - 1]; at--) value[at] = value[at - 1], index[at] = index[at - 1];
            value[at] = x[j], index[at] = j;
        }
    }
    return count;
}

/* Logits [N], the largest first, become weights. */
static void NAME(route)(REAL *w, int64_t N, int sparsemax) {
    REAL sum = 0;
    if (!sparsemax) {
        const REAL top = w[0];
        for (int64_t n = 0; n < N; n++) sum += w[n] = EXP(w[n] - top);
        for (int64_t n = 0; n < N; n++) w[n] /= sum;
        return;
    }
    REAL excess = 0, threshold = 0;
    for (int64_t n = 0; n < N; n++) {
        excess += w[n];
        if ((n + 1) * w[n] > excess - 1) threshold = (excess - 1) / (n + 1);
    }
    for (int64_t n = 0; n < N; n++) w[n] = w[n] > threshold ? w[n] - threshold : 0;
}

/* The ages of all slots after one more token, whose heads read `slot` with `weight` [H, N]. */
static void NAME(age)(const NAME(row) * r, const REAL *weight, const int64_t *slot) {
    const int64_t J = r->n.J;
    const REAL decay = r->p.decay, share = (1 - r->p.decay) * J / r->n.H;
    REAL *restrict since_read = r->ages, *restrict since_write = r->ages + J;
    REAL *restrict read_use = r->ages + 2 * J, *restrict write_use = r->ages + 3 * J;
    for (int64_t j = 0; j < J; j++) {
        since_read[j] += 1, since_write[j] += 1;
        read_use[j] *= decay, write_use[j] *= decay;
    }
    for (int64_t i = 0; i < r->n.H * r->n.N; i++)
        if (weight[i] > 0) since_read[slot[i]] = 0, read_use[slot[i]] += share * weight[i];
}

/* Of the m tokens at places c, c + 1, ... of the frame: the nearest slot and the nearest earlier token. */
static void NAME(match)(const NAME(row) * r, int64_t c, int m) {
    const int64_t H = r->n.H, K = r->n.K, E = K + r->n.V, J = r->n.J;
    REAL *closeness = r->scores + TOGETHER * tiles_of(J) * TILE;
    for (int64_t h = 0; h < H; h++) {
        const REAL *key[TOGETHER];
        for (int i = 0; i < m; i++) key[i] = r->frame + ((c + i) * H + h) * E;
        NAME(products)(r, h, key, closeness, m, h > 0);
    }
    for (int i = 0; i < m; i++, c++) {
        NAME(largest)(closeness + i * tiles_of(J) * TILE, J, 1, r->affinity + c, r->best + c);
        r->affinity[c] /= H;
        r->nearest[c] = -2;
        for (int64_t e = 0; e < c; e++) {
            REAL sum = 0;
            for (int64_t h = 0; h < H; h++) {
                const REAL *a = r->frame + (c * H + h) * E, *b = r->frame + (e * H + h) * E;
#pragma omp simd reduction(+ : sum)
                for (int64_t k = 0; k < K; k++) sum += a[k] * b[k];
            }
            if (sum / H > r->nearest[c]) r->nearest[c] = sum / H;
        }
    }
}

/* What the m tokens from `query` [m, H, K] on read. */
static void NAME(reads)(const NAME(row) * r, const REAL *query, int m, REAL *read, REAL *weight, int64_t *slot) {
    const int64_t H = r->n.H, K = r->n.K, V = r->n.V, N = r->n.N, J = r->n.J;
    for (int64_t h = 0; h < H; h++) {
        const REAL *x[TOGETHER];
        for (int i = 0; i < m; i++) x[i] = query + (i * H + h) * K;
        NAME(products)(r, h, x, r->scores, m, 0);
        for (int i = 0; i < m; i++) {
            REAL *w = weight + (i * H + h) * N, *restrict y = read + (i * H + h) * V;
            int64_t *j = slot + (i * H + h) * N;
            NAME(largest)(r->scores + i * tiles_of(J) * TILE, J, N, w, j);
            NAME(route)(w, N, r->p.sparsemax);
            for (int64_t v = 0; v < V; v++) y[v] = 0;
            for (int64_t n = 0; n < N; n++) {
                const REAL *restrict content = r->bank + (j[n] * H + h) * (K + V) + K;
                for (int64_t v = 0; v < V; v++) y[v] += w[n] * content[v];
            }
        }
    }
    for (int i = 0; i < m; i++) NAME(age)(r, weight + i * H * N, slot + i * H * N);
}

/* The slots that novel tokens take: of those not refined the `most` of least use, in this order; returns how many. */
static int64_t NAME(least_useful)(const NAME(row) * r, int64_t most, REAL *worth, int64_t *index) {
    const int64_t J = r->n.J;
    REAL *use = r->scores; /* its negative, so that the largest is the least useful */
    for (int64_t j = 0; j < J; j++) {
        const REAL idle = r->ages[j] < r->ages[J + j] ? r->ages[j] : r->ages[J + j];
        use[j] = r->refined[j] ? -INFINITY : (REAL)r->p.idle * idle - (r->ages[2 * J + j] + r->ages[3 * J + j]);
    }
    int64_t count = NAME(largest)(use, J, most, worth, index);
    while (count && worth[count - 1] == -INFINITY) count--;
    return count;
}

/* A write of token c to slot j. before [C, H, K + V] takes the old record, or is NULL. */
static void NAME(write)(const NAME(row) * r, int64_t c, int64_t j, int overwrites, REAL *before) {
    const int64_t H = r->n.H, K = r->n.K, E = K + r->n.V;
    REAL *record = r->bank + j * H * E;
    const REAL *token = r->frame + c * H * E, s = r->strength[c];
    if (before) memcpy(before + c * H * E, record, H * E * sizeof(REAL));
    if (!overwrites)
        for (int64_t e = 0; e < H * E; e++) record[e] += s * (token[e] - record[e]);
    else
        for (int64_t h = 0; h < H; h++, record += E, token += E) {
            for (int64_t k = 0; k < K; k++) record[k] = token[k];
            for (int64_t e = K; e < E; e++) record[e] = s * token[e];
        }
    r->ages[r->n.J + j] = 0;
    r->ages[3 * r->n.J + j] += (1 - r->p.decay) * r->n.J * s;
}

/* kind and target [C] say what each token of the frame does. */
static void NAME(tick)(const NAME(row) * r, uint8_t *kind, int64_t *target, REAL *before) {
    const int64_t C = r->n.C, J = r->n.J, W = r->n.W;
    const REAL match = r->p.match;
    REAL novelty[C], worth[W], value[W];
    int64_t order[W], taken[W], novel = 0;
    for (int64_t c = 0; c < C; c++) {
        kind[c] = r->affinity[c] >= match ? REFINES : NOTHING;
        const REAL nearest = r->affinity[c] > r->nearest[c] ? r->affinity[c] : r->nearest[c];
        const int new = !kind[c] && r->nearest[c] < match;
        novelty[c] = new ? 1 - nearest : -INFINITY;
        novel += new;
        target[c] = r->best[c];
        if (kind[c]) r->refined[target[c]] = 1;
    }
    int64_t count = novel ? NAME(least_useful)(r, W, worth, taken) : 0; /* by the ages before the tick */
    const int64_t chosen = NAME(largest)(novelty, C, novel < W ? novel : W, value, order);
    for (int64_t c = 0; c < C; c++)
        if (kind[c]) NAME(write)(r, c, target[c], 0, before);
    for (int64_t i = 0; i < chosen && i < count; i++) {
        const int64_t c = order[i], j = target[c] = taken[i];
        kind[c] = OVERWRITES;
        NAME(write)(r, c, j, 1, before);
        r->ages[j] = 0;
        r->ages[2 * J + j] = 1;
    }
    for (int64_t c = 0; c < C; c++)
        if (kind[c]) r->refined[target[c]] = 0, NAME(write_tile)(r, target[c]);
}

static void NAME(pass)(NAME(row) * r, int64_t start, int64_t length, const REAL *query, const REAL *key,
                       const REAL *value, const REAL *strength, REAL *read, REAL *weight, int64_t *slot, REAL *affinity,
                       REAL *novelty, uint8_t *kind, int64_t *target, REAL *before) {
    const int64_t H = r->n.H, K = r->n.K, V = r->n.V, E = K + V, C = r->n.C, N = r->n.N;
    int64_t c = start % C, frame = 0;
    if (c + length >= C)
        for (int64_t e = 0; e < c; e++) NAME(match)(r, e, 1);
    for (int64_t t = 0; t < length;) {
        const int64_t left = (length - t < C - c) ? length - t : C - c;
        const int m = left >= TOGETHER ? TOGETHER : 1;
        for (int i = 0; i < m; i++) {
            for (int64_t h = 0; h < H; h++) {
                REAL *record = r->frame + ((c + i) * H + h) * E;
                memcpy(record, key + ((t + i) * H + h) * K, K * sizeof(REAL));
                memcpy(record + K, value + ((t + i) * H + h) * V, V * sizeof(REAL));
            }
            r->strength[c + i] = strength[t + i];
        }
        NAME(reads)(r, query + t * H * K, m, read + t * H * V, weight + t * H * N, slot + t * H * N);
        NAME(match)(r, c, m);
        for (int i = 0; i < m; i++) {
            const REAL near = r->affinity[c + i], earlier = r->nearest[c + i];
            affinity[t + i] = near;
            novelty[t + i] = 1 - (near > earlier ? near : earlier);
        }
        t += m, c += m;
        if (c < C) continue;
        NAME(tick)(r, kind + frame * C, target + frame * C, before ? before + frame * C * H * E : 0);
        memset(r->frame, 0, C * H * E * sizeof(REAL));
        memset(r->strength, 0, C * sizeof(REAL));
        c = 0, frame++;
    }
}

/* Arrays as in `slot_memory`. bank, ages, frame (the pending tokens) and frame_strength are changed in place. kind and
   target [B, G, C] and before [B, G, C, H, K + V], or NULL, are for the way back. scratch [B, scratch], best [B, C],
   refined [B, J] zeros. */
void NAME(forward)(const REAL *query, const REAL *key, const REAL *value, const REAL *strength, REAL *bank, REAL *ages,
                   REAL *frame, REAL *frame_strength, const int64_t *start, const int64_t *lengths, REAL *read,
                   REAL *weight, int64_t *slot, REAL *affinity, REAL *novelty, uint8_t *kind, int64_t *target,
                   REAL *before, REAL *scratch, int64_t *best, uint8_t *refined, sizes n, policy p) {
    const int64_t E = n.K + n.V, F = n.C * n.H * E, all = NAME(scratch)(n), tiles = tiles_of(n.J) * TILE;
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < n.B; b++) {
        const unsigned mode = flush_subnormals();
        REAL *mine = scratch + b * all, *column = ages + b * n.J * 4;
        NAME(row) r = {n, p, bank + b * n.J * n.H * E, mine};
        r.scores = r.tiles + tiles * n.H * n.K;
        r.ages = r.scores + 2 * TOGETHER * tiles;
        r.affinity = r.ages + 4 * n.J;
        r.nearest = r.affinity + n.C;
        r.frame = frame + b * F, r.strength = frame_strength + b * n.C;
        r.best = best + b * n.C, r.refined = refined + b * n.J;
        memset(r.tiles, 0, tiles * n.H * n.K * sizeof(REAL));
        for (int64_t j = 0; j < n.J; j++) NAME(write_tile)(&r, j);
        for (int64_t j = 0; j < n.J; j++)
            for (int a = 0; a < 4; a++) r.ages[a * n.J + j] = column[j * 4 + a];
        const int64_t token = b * n.T, tick = b * n.G * n.C;
        NAME(pass)(&r, start[b], lengths ? lengths[b] : n.T, query + token * n.H * n.K, key + token * n.H * n.K,
                   value + token * n.H * n.V, strength + token, read + token * n.H * n.V, weight + token * n.H * n.N,
                   slot + token * n.H * n.N, affinity + token, novelty + token, kind + tick, target + tick,
                   before ? before + tick * n.H * E : 0);
        for (int64_t j = 0; j < n.J; j++)
            for (int a = 0; a < 4; a++) column[j * 4 + a] = r.ages[a * n.J + j];
        restore_subnormals(mode);
    }
}

#include "slot_memory_back.h"

#endif
