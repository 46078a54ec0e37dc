// One token through a gated linear recurrence: layers/rg_lru.py.
#pragma once

#include "activate.h"
#include "recurrent.h"

typedef struct {
    convolution conv;
    const float *write, *write_bias, *keep, *keep_bias;  // of the gates: [heads, size, size] from, to; [channels]
    const float *rate;                                   // 8 softplus(Λ) [channels]
    const int64_t *positions;                            // [rows]: of the tokens
    int64_t channels, heads, activation;
} rg_lru_rule;

// y [size] = W' u + b.
static void block_product(const float *u, const float *weight, const float *bias, int64_t size, float *y) {
    for (int64_t j = 0; j < size; j += LANES) {
        int64_t left = size - j;
        lanes sum = get_lanes(bias + j, left);
        for (int64_t i = 0; i < size; i++) sum = fma8(get_lanes(weight + i * size + j, left), fill(u[i]), sum);
        put_lanes(y + j, sum, left);
    }
}

// u [channels]: inputs of the recurrence, in place; gate [channels]: of the output. h' = a h + sqrt(1 - a²) i u.
static void rg_lru_row(const rg_lru_rule *own, int64_t row, float *u, float *gate, const float *scan,
                       const float *inputs, float *scan_after, float *inputs_after, float *y) {
    int64_t size = own->channels / own->heads, is_first = own->positions[row] == 0;
    convolve_row(&own->conv, own->channels, 0, u, inputs, inputs_after);
    activate(own->activation, gate, 1, own->channels, gate);
    for (int64_t h = 0; h < own->heads; h++) {
        int64_t at = h * size;
        float in[size], keep[size];
        block_product(u + at, own->write + at * size, own->write_bias + at, size, in);
        block_product(u + at, own->keep + at * size, own->keep_bias + at, size, keep);
        for (int64_t i = 0; i < size; i++) {
            float log_decay = -own->rate[at + i] * sigmoid(keep[i]);
            float fill = is_first ? 1 : sqrtf(-expm1f(2 * log_decay)), decay = is_first ? 0 : exp_float(log_decay);
            scan_after[at + i] = decay * scan[at + i] + fill * sigmoid(in[i]) * u[at + i];
            y[at + i] = scan_after[at + i] * gate[at + i];
        }
    }
}
