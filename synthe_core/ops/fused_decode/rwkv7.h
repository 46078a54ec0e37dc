// One token through RWKV-7's time mixing: layers/rwkv7.py.
#pragma once

#include "linear_memory.h"
#include "maps.h"

typedef struct {
    const float *mix;                                    // [6, width]: of r, decay, k, v, rate, gate
    const float *decay_bias, *rate_bias, *value_bias;    // [width]
    const float *unit, *k_k, *k_a, *r_k, *norm, *norm_bias;  // [size], and [width] each
    double key_eps, norm_eps;
    int64_t heads, size, shares, mixes;                  // shares: its values; mixes: those of the one that shares
} rwkv7_rule;

enum { RECEPTANCE, DECAY, KEY, VALUE, RATE, GATE, PURPOSES };

// What a head's memory becomes, M' = Diag(w) M - a κ (κ' M) + k v', and y = M' r. [size, size].
static void rwkv7_head(const float *r, const float *w, const float *k, const float *v, const float *removed,
                       const float *rate, int64_t size, const float *before, float *after, float *y) {
    for (int64_t c = 0; c < size; c += LANES) {
        int64_t left = size - c;
        lanes recalled = fill(0), read = fill(0), value = get_lanes(v + c, left);
        for (int64_t i = 0; i < size; i++)
            recalled = fma8(get_lanes(before + i * size + c, left), fill(removed[i]), recalled);
        for (int64_t i = 0; i < size; i++) {
            lanes row = times(get_lanes(before + i * size + c, left), fill(w[i]));
            row = fma8(recalled, fill(-rate[i] * removed[i]), row);
            row = fma8(value, fill(k[i]), row);
            put_lanes(after + i * size + c, row, left);
            read = fma8(row, fill(r[i]), read);
        }
        put_lanes(y + c, read, left);
    }
}

// outputs: of the six purposes, [width] each, `apart` numbers apart.
static void rwkv7_row(const rwkv7_rule *own, float *outputs, int64_t apart, const float *before, float *after, float *y) {
    int64_t n = own->size;
    for (int64_t h = 0; h < own->heads; h++) {
        int64_t at = h * n;
        float *r = outputs + RECEPTANCE * apart + at, *w = outputs + DECAY * apart + at, *k = outputs + KEY * apart + at;
        float *v = outputs + VALUE * apart + at, *rate = outputs + RATE * apart + at, *gate = outputs + GATE * apart + at;
        float removed[n], bonus = 0;
        for (int64_t i = 0; i < n; i++) {
            w[i] = exp_float(-0.60653066f * sigmoid(w[i] + own->decay_bias[at + i]));
            rate[i] = sigmoid(rate[i] + own->rate_bias[at + i]);
            removed[i] = k[i] * own->k_k[at + i];
            k[i] *= 1 + (rate[i] - 1) * own->k_a[at + i];
        }
        norm_row(removed, own->unit, own->key_eps, n, removed);
        rwkv7_head(r, w, k, v, removed, rate, n, before + at * n, after + at * n, y + at);
        layer_norm_row(y + at, own->norm + at, own->norm_bias + at, own->norm_eps, n, y + at);
        for (int64_t i = 0; i < n; i++) bonus += r[i] * k[i] * own->r_k[at + i];
        for (int64_t i = 0; i < n; i++) y[at + i] = (y[at + i] + bonus * v[i]) * gate[i];
    }
}

// Values [rows, width] as the residual has them: mixed with `first`, those of the layer that shares, or stored there.
// share: what the maps say of each.
static void rwkv7_values(const rwkv7_rule *own, const float *share, int64_t count, int64_t width, float *v, float *first) {
    if (own->shares) memcpy(first, v, (size_t)count * sizeof(float));
    for (int64_t i = 0; own->mixes && i < count; i++)
        v[i] += sigmoid(share[i] + own->value_bias[i % width]) * (first[i] - v[i]);
}

// x [rows, width]: what the learner reads. maps: of receptance, key, value, then two each of decay, rate, gate and, where
// values are mixed, of their shares. first [rows, width]: values of the layer that shares them.
static void rwkv7(const rwkv7_rule *own, const linear *in, const linear *maps, const float *x, int64_t rows,
                  int64_t width, const int64_t *adapters, const float *const *before, float *const *after, int in_order,
                  float *room, float *first, float *y, scratch *scratch) {
    static const int of_map[] = {KEY, VALUE, DECAY, RATE, GATE, VALUE};
    int64_t count = rows * width, memory = width * own->size;
    float *shift = room, *mixed = shift + count, *outputs = mixed + count, *share = outputs + PURPOSES * count;
    float *narrow = share + count;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < width; i++) shift[r * width + i] = before[1][r * width + i] - x[r * width + i];
        memcpy(after[1] + r * width, x + r * width, (size_t)width * sizeof(float));
    }
    for (int m = -1; m < 5 + (own->mixes != 0); m++) {
        int purpose = m < 0 ? RECEPTANCE : of_map[m];
        const float *mix = own->mix + purpose * width;
        for (int64_t i = 0; i < count; i++) mixed[i] = x[i] + mix[i % width] * shift[i];
        float *target = m == 5 ? share : outputs + purpose * count;
        if (m < 2) {
            apply(m < 0 ? in : maps + m, mixed, rows, adapters, target, scratch);
            continue;
        }
        const linear *down = maps + 2 * m - 2, *up = down + 1;
        apply(down, mixed, rows, adapters, narrow, scratch);
        for (int64_t i = 0; purpose == DECAY && i < rows * down->outputs; i++) narrow[i] = tanhf(narrow[i]);
        for (int64_t i = 0; purpose == GATE && i < rows * down->outputs; i++) narrow[i] = sigmoid(narrow[i]);
        apply(up, narrow, rows, adapters, target, scratch);
    }
    rwkv7_values(own, share, count, width, outputs + VALUE * count, first);
#pragma omp parallel for schedule(static) if (rows > 1 && !in_order)
    for (int64_t r = 0; r < rows; r++)
        rwkv7_row(own, outputs + r * width, count, before[0] + r * memory, after[0] + r * memory, y + r * width);
}
