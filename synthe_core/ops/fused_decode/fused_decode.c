// One token of every row through blocks of learners, each behind a norm and in a residual, or as residual.h says.
//
//     x += out(attention(rotary(norm(x) W_qkv)))        x += down(act(gate) up),  [gate, up] = norm(x) W
//     x += out(f(norm(x) W, state))                     f: recurrent.h
//
// A row's result does not depend on the other rows: it is computed alone, and products are those of packed_linear.h and
// float_linear.h. What a step is, and who owns the memory: fused_decode/__init__.py.
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "../native_attention/attend.h"
#include "activate.h"
#include "experts.h"
#include "kda.h"
#include "linear_memory.h"
#include "mamba.h"
#include "maps.h"
#include "recurrent.h"
#include "residual.h"
#include "rg_lru.h"
#include "rwkv7.h"

enum { ATTENTION, MLP, MOMENTUM, KALMAN, DELTA, GLA, MLSTM, MAMBA2, GATED_CONV, EXPERTS, MAMBA, KDA, RG_LRU, RWKV7 };

typedef struct {
    int64_t kind;
    residual residual;
    linear in, out;
    // of mlp:
    int64_t activation, is_gated;  // is_gated: of attention too
    double gate_scale;
    // of attention:
    int64_t heads, groups, size, turned, norms_jointly;
    double norm_eps, scale, cap, clip;  // norm_eps: of queries and keys, < 0: no norm; 0: no cap, no clip
    const float *q_norm, *k_norm;
    const float *cos, *sin;  // [rows, turned / 2]
    float *keys, *values;    // [rows, capacity, groups, size]
    const float *filled;     // [rows]: how many of the `past` entries are real, the last ones
    int64_t capacity, start, past, window;
    // of a recurrent learner:
    linear more;             // a second map, of kalman's gates or gla's decays
    int64_t more_from;       // the feature that its inputs begin at; -1: they are those of the first map
    const float *before[3];  // its states, [rows, ...] each, in the order of the learner's
    float *after[3];
    const float *bias;  // of momentum's decays
    filter kalman;
    memory_rule delta;
    gla_rule gla;
    mlstm_rule mlstm;
    mamba2_rule mamba2;
    convolution conv;     // of gated_conv
    expert_rule experts;  // `more` and `out` are the matrices of all experts, `in` is the router
    float *signals;    // of kalman: [rows, 2]
    int64_t in_order;  // whether a row of a recurrent learner reads the state after the row before it
    // of learners with maps between others:
    const linear *maps;
    int64_t room, most;  // room: numbers a row for their outputs; most: inputs of one of them
    mamba_rule mamba;
    kda_rule kda;
    rg_lru_rule rg_lru;
    rwkv7_rule rwkv7;
} step;

// A head's norm, and the rotation of pairs (i, i + turned / 2).
static void turn(float *head, const step *s, const float *weight, const float *cos, const float *sin) {
    int64_t half = s->turned / 2;
    if (s->norm_eps >= 0 && !s->norms_jointly) norm_row(head, weight, s->norm_eps, s->size, head);
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cos[i] - b * sin[i];
        head[i + half] = a * sin[i] + b * cos[i];
    }
}

// How many entries a row's token sees, itself included: whatever `filled` says, it reads nothing outside its window.
static int64_t seen(const step *s, int64_t row) {
    float filled = s->filled[row];
    int64_t count = filled >= (float)s->past ? s->past + 1 : filled > 0 ? 1 + (int64_t)filled : 1;
    return count > s->window ? s->window : count;
}

// A row's queries, keys and values, clipped; and its queries and keys, where they are normalised as a whole.
static void prepare(const step *s, float *q) {
    int64_t queries = s->heads * s->size, width = s->groups * s->size;
    float clip = (float)s->clip;
    for (int64_t i = 0; clip > 0 && i < queries + 2 * width; i++) q[i] = q[i] < -clip ? -clip : q[i] > clip ? clip : q[i];
    if (s->norm_eps < 0 || !s->norms_jointly) return;
    norm_row(q, s->q_norm, s->norm_eps, queries, q);
    norm_row(q + queries, s->k_norm, s->norm_eps, width, q + queries);
}

// The row's keys and values are written before any row reads: rows may be tokens of one sequence.
static void attention(const step *s, int64_t rows, float *features, float *y, float *scores) {
    int64_t queries = s->heads * s->size, width = s->groups * s->size, stride = s->in.outputs, rep = s->heads / s->groups;
#pragma omp parallel for schedule(static) if (rows * s->past > 64)
    for (int64_t r = 0; r < rows; r++) {
        float *q = features + r * stride, *k = q + queries;
        const float *cos = s->cos + r * s->turned / 2, *sin = s->sin + r * s->turned / 2;
        prepare(s, q);
        for (int64_t h = 0; h < s->heads; h++) turn(q + h * s->size, s, s->q_norm, cos, sin);
        for (int64_t g = 0; g < s->groups; g++) turn(k + g * s->size, s, s->k_norm, cos, sin);
        int64_t at = (r * s->capacity + s->start + s->past) * width;
        memcpy(s->keys + at, k, (size_t)width * sizeof(float));
        memcpy(s->values + at, k + width, (size_t)width * sizeof(float));
    }
#pragma omp parallel for schedule(static) collapse(2) if (rows * s->past > 64)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < s->groups; g++) {
            float *q = features + r * stride + g * rep * s->size, *o = y + r * queries + g * rep * s->size;
            int64_t count = seen(s, r), past = (r * s->capacity + s->start) * width + g * s->size;
            float *own = scores + (r * s->groups + g) * (s->past + 1);
            entries window = {s->keys + past, s->values + past, NULL, width, s->size};
            for (int64_t h = 0; h < rep; h++, q += s->size, o += s->size) {
                attend(&window, q, s->past + 1 - count, s->past + 1, (float)s->scale, (float)s->cap, o, own);
                if (s->is_gated) gate_row(o, q + queries + 2 * width, s->size, 0);
            }
        }
}

static void mlp(const step *s, const float *in, int64_t rows, float *y) {
    int64_t hidden = s->out.inputs;
    for (int64_t r = 0; r < rows; r++, in += s->in.outputs, y += hidden) {
        activate(s->activation, in, (float)s->gate_scale, hidden, y);
        if (s->is_gated)
            for (int64_t h = 0; h < hidden; h++) y[h] *= in[hidden + h];
    }
}

// Where row r of a state begins, whose rows have `size` numbers each.
#define BEFORE(leaf, size) (s->before[leaf] + r * (size))
#define AFTER(leaf, size) (s->after[leaf] + r * (size))

static void recurrent_row(const step *s, int64_t r, float *own, float *more, float *o) {
    int64_t n = s->out.inputs;
    if (s->kind == MOMENTUM) {
        momentum_row(own, n, s->in.outputs == 3 * n, s->bias, BEFORE(0, n), AFTER(0, n), o);
    } else if (s->kind == KALMAN) {
        kalman_row(&s->kalman, own, more, n, BEFORE(0, n), BEFORE(1, n), AFTER(0, n), AFTER(1, n), o, s->signals + 2 * r);
    } else if (s->kind == DELTA) {
        const memory_rule *rule = &s->delta;
        int64_t memory = n * rule->key, inputs = (rule->conv.taps - 1) * (2 * rule->heads * rule->key + n);
        delta_row(rule, own, BEFORE(0, memory), BEFORE(1, inputs), AFTER(0, memory), AFTER(1, inputs), o);
    } else if (s->kind == GLA) {
        const gla_rule *rule = &s->gla;
        int64_t channels = rule->heads * rule->key + rule->groups * (rule->key + rule->value), memory = n * rule->key;
        int64_t inputs = (rule->conv.taps - 1) * channels;
        gla_row(rule, own, more, BEFORE(0, memory), BEFORE(1, inputs), AFTER(0, memory), AFTER(1, inputs), o);
    } else if (s->kind == MLSTM) {
        const mlstm_rule *rule = &s->mlstm;
        int64_t H = rule->heads, memory = H * rule->key * (rule->value + 1), inputs = (rule->conv.taps - 1) * 2 * H * rule->key;
        mlstm_row(rule, own, BEFORE(0, memory), BEFORE(1, H), BEFORE(2, inputs), AFTER(0, memory), AFTER(1, H),
                  AFTER(2, inputs), o);
    } else if (s->kind == GATED_CONV) {
        int64_t inputs = (s->conv.taps - 1) * n;
        gated_conv_row(&s->conv, own, n, BEFORE(0, inputs), AFTER(0, inputs), o);
    } else if (s->kind == RG_LRU) {
        int64_t inputs = (s->rg_lru.conv.taps - 1) * n;
        rg_lru_row(&s->rg_lru, r, own, more, BEFORE(0, n), BEFORE(1, inputs), AFTER(0, n), AFTER(1, inputs), o);
    } else {
        const mamba2_rule *rule = &s->mamba2;
        int64_t memory = n * rule->size, inputs = (rule->conv.taps - 1) * (n + 2 * rule->groups * rule->size);
        mamba2_row(rule, own, BEFORE(0, memory), BEFORE(1, inputs), AFTER(0, memory), AFTER(1, inputs), o);
    }
}

static void recurrent(const step *s, int64_t rows, float *features, float *y) {
    float *more = features + rows * s->in.outputs;
#pragma omp parallel for schedule(static) if (rows > 1 && !s->in_order)
    for (int64_t r = 0; r < rows; r++)
        recurrent_row(s, r, features + r * s->in.outputs, more + r * s->more.outputs, y + r * s->out.inputs);
}

// The outputs of a step's second map, of x or of some outputs of the first map, behind those of the first.
static void apply_more(const step *s, const float *x, int64_t rows, const int64_t *adapters, scratch *own) {
    if (s->more_from >= 0) {
        for (int64_t r = 0; r < rows; r++)
            memcpy(own->inner + r * s->more.inputs, own->features + r * s->in.outputs + s->more_from,
                   (size_t)s->more.inputs * sizeof(float));
        x = own->inner;
    }
    apply(&s->more, x, rows, adapters, own->features + rows * s->in.outputs, own);
}

// What a step's learner makes of `read`, before its last map: in `inner`.
static void learn(const step *s, const float *read, int64_t rows, int64_t width, const int64_t *adapters, float *scores,
                  scratch *own) {
    float *room = own->features + rows * s->in.outputs;
    int in_order = (int)s->in_order;
    if (s->kind == RWKV7) {
        rwkv7(&s->rwkv7, &s->in, s->maps, read, rows, width, adapters, s->before, s->after, in_order, own->features,
              own->values, own->inner, own);
        return;
    }
    apply(&s->in, read, rows, adapters, own->features, own);
    if (s->more.outputs && s->kind != EXPERTS) apply_more(s, read, rows, adapters, own);
    if (s->kind == EXPERTS)
        experts(&s->experts, &s->more, &s->out, read, own->features, rows, adapters, room, own->y, own);
    else if (s->kind == ATTENTION) attention(s, rows, own->features, own->inner, scores);
    else if (s->kind == MLP) mlp(s, own->features, rows, own->inner);
    else if (s->kind == MAMBA)
        mamba(&s->mamba, s->maps, own->features, rows, adapters, s->before, s->after, in_order, room, own->inner, own);
    else if (s->kind == KDA)
        kda(&s->kda, s->maps, own->features, s->in.outputs, rows, adapters, s->before, s->after, in_order, room,
            own->inner, own);
    else recurrent(s, rows, own->features, own->inner);
}

static int64_t run_steps(const step *steps, int64_t count, float *x, const int64_t *adapters, int64_t rows, int64_t width,
                         int64_t features, int64_t inner, int64_t rank, float *shared) {
    int64_t most = inner > width ? inner : width, blocks = (most + BLOCK - 1) / BLOCK, scores = 1;
    for (int64_t i = 0; i < count; i++)
        if (steps[i].kind == ATTENTION && steps[i].groups * (steps[i].past + 1) > scores)
            scores = steps[i].groups * (steps[i].past + 1);
    int64_t floats = 3 * width + features + inner + 2 * width + scores + 4 * blocks + rank;
    float *memory = malloc((size_t)(rows * floats) * sizeof(float) + (size_t)(rows * blocks * BLOCK));
    if (!memory) return 1;
    scratch own;
    own.normed = memory;
    own.features = own.normed + rows * width;
    own.inner = own.features + rows * features;
    own.y = own.inner + rows * inner;
    own.stream = own.y + rows * width;
    own.scaled = own.stream + rows * width;
    own.values = own.scaled + rows * width;
    float *room = own.values + rows * width;
    if (shared) own.normed = shared, own.stream = shared + rows * width, own.values = own.stream + rows * width;
    own.scales = room + rows * scores;
    own.sums = own.scales + rows * blocks;
    own.counts = (int32_t *)(own.sums + rows * blocks);
    own.narrow = own.sums + 3 * rows * blocks;
    own.rank = rank;
    own.codes = (int8_t *)(own.narrow + rows * rank);
    for (int64_t i = 0; i < count; i++) {
        const step *s = steps + i;
        const float *read = read_stream(&s->residual, x, own.stream, rows, width, own.normed, own.scaled);
        learn(s, read, rows, width, adapters, room, &own);
        if (s->kind != EXPERTS) apply(&s->out, own.inner, rows, adapters, own.y, &own);
        add_to_stream(&s->residual, own.normed, own.y, rows, width, x);
    }
    free(memory);
    return 0;
}

// x [rows, width] in place. features, inner, rank: the most outputs and inputs of a step's maps, and of their changes.
// threads: how many; 0: as many as the caller has. Numbers do not depend on it. shared [3, rows, width]: what learners
// side by side read and share, for calls of some steps each; NULL: all such steps are in this call. Returns 0, or 1 if there is no
// memory.
int64_t decode(const step *steps, int64_t count, float *x, const int64_t *adapters, int64_t rows, int64_t width,
               int64_t features, int64_t inner, int64_t rank, int64_t threads, float *shared) {
#ifdef _OPENMP
    int before = omp_get_max_threads();
    if (threads > 0) omp_set_num_threads((int)threads);
    int64_t failed = run_steps(steps, count, x, adapters, rows, width, features, inner, rank, shared);
    omp_set_num_threads(before);
    return failed;
#else
    return run_steps(steps, count, x, adapters, rows, width, features, inner, rank, shared);
#endif
}

int64_t step_bytes(void) { return sizeof(step); }
