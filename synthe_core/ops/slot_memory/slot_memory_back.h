/* The gradient of the slot memory, included by slot_memory.c for each kind of number. */

/* One row on the way back: its bank and that bank's gradient, and the gradients of the frame's tokens. */
typedef struct {
    sizes n;
    policy p;
    REAL *bank, *bank_grad, *frame_grad, *strength_grad;
} NAME(row_back);

/* The tick of a frame is undone. record and strength: of its tokens, [C] pointers and numbers. */
static void NAME(tick_back)(const NAME(row_back) * r, const REAL *const *key, const REAL *const *content,
                            const int64_t *stride, const REAL *strength, const uint8_t *kind, const int64_t *target,
                            const REAL *before) {
    const int64_t H = r->n.H, K = r->n.K, V = r->n.V, E = K + V, size = H * E;
    memset(r->frame_grad, 0, r->n.C * size * sizeof(REAL));
    memset(r->strength_grad, 0, r->n.C * sizeof(REAL));
    for (int64_t c = r->n.C - 1; c >= 0; c--) {
        if (kind[c] == NOTHING) continue;
        REAL *grad = r->bank_grad + target[c] * size, of_strength = 0;
        const REAL s = strength[c];
        for (int64_t h = 0; h < H; h++) {
            const REAL *k = key[c] + h * stride[2 * c], *v = content[c] + h * stride[2 * c + 1];
            const REAL *old = before + c * size + h * E;
            REAL *of_record = r->frame_grad + c * size + h * E, *g = grad + h * E;
            if (kind[c] == REFINES) {
                for (int64_t e = 0; e < K; e++) of_strength += g[e] * (k[e] - old[e]), of_record[e] = s * g[e];
                for (int64_t e = 0; e < V; e++)
                    of_strength += g[K + e] * (v[e] - old[K + e]), of_record[K + e] = s * g[K + e];
                for (int64_t e = 0; e < E; e++) g[e] *= 1 - s;
            } else {
                for (int64_t e = 0; e < K; e++) of_record[e] = g[e];
                for (int64_t e = 0; e < V; e++) of_strength += g[K + e] * v[e], of_record[K + e] = s * g[K + e];
                for (int64_t e = 0; e < E; e++) g[e] = 0;
            }
        }
        r->strength_grad[c] = of_strength;
        memcpy(r->bank + target[c] * size, before + c * size, size * sizeof(REAL));
    }
}

/* The reads of one token: what its query and the bank get. Given gradients are NULL for none. */
static void NAME(reads_back)(const NAME(row_back) * r, const REAL *query, const REAL *weight, const int64_t *slot,
                             const REAL *read_given, const REAL *weight_given, REAL *query_grad) {
    const int64_t H = r->n.H, K = r->n.K, V = r->n.V, N = r->n.N, E = K + V;
    REAL of_weight[N];
    for (int64_t h = 0; h < H; h++, weight += N, slot += N) {
        REAL *restrict of_query = query_grad + h * K, mean = 0;
        const REAL *restrict q = query + h * K, *restrict given = read_given ? read_given + h * V : 0;
        int64_t support = 0;
        for (int64_t n = 0; n < N; n++) {
            const REAL *content = r->bank + (slot[n] * H + h) * E + K;
            REAL *restrict of_content = r->bank_grad + (slot[n] * H + h) * E + K, sum = 0;
            if (weight_given) sum = weight_given[h * N + n];
            for (int64_t v = 0; given && v < V; v++) {
                sum += given[v] * content[v];
                of_content[v] += weight[n] * given[v];
            }
            of_weight[n] = sum;
            if (!r->p.sparsemax) mean += weight[n] * sum;
            else if (weight[n] > 0) mean += sum, support++;
        }
        if (r->p.sparsemax) mean /= support;
        for (int64_t k = 0; k < K; k++) of_query[k] = 0;
        for (int64_t n = 0; n < N; n++) {
            const REAL share = r->p.sparsemax ? weight[n] > 0 : weight[n], of_logit = share * (of_weight[n] - mean);
            const REAL *restrict key = r->bank + (slot[n] * H + h) * E;
            REAL *restrict of_key = r->bank_grad + (slot[n] * H + h) * E;
            for (int64_t k = 0; k < K; k++) {
                of_query[k] += of_logit * key[k];
                of_key[k] += of_logit * q[k];
            }
        }
    }
}

/* Of a row: from its last token to the first. pending and of_pending [C, H, K + V]: the frame before the pass. */
static void NAME(pass_back)(const NAME(row_back) * r, int64_t start, int64_t length, const REAL *query, const REAL *key,
                            const REAL *value, const REAL *strength, const REAL *pending,
                            const REAL *pending_strength, const REAL *weight, const int64_t *slot,
                            const uint8_t *kind, const int64_t *target, const REAL *before, const REAL *read_given,
                            const REAL *weight_given, REAL *query_grad, REAL *key_grad, REAL *value_grad,
                            REAL *strength_grad) {
    const int64_t H = r->n.H, K = r->n.K, V = r->n.V, E = K + V, C = r->n.C, N = r->n.N, offset = start % C;
    for (int64_t t = length - 1; t >= 0; t--) {
        const int64_t c = (offset + t) % C, frame = (offset + t) / C;
        if (c == C - 1) {
            const REAL *keys[C], *contents[C];
            REAL strengths[C];
            int64_t stride[2 * C];
            for (int64_t i = 0; i < C; i++) {
                const int64_t at = t - c + i; /* before the pass where it is negative */
                keys[i] = at < 0 ? pending + i * H * E : key + at * H * K;
                contents[i] = at < 0 ? pending + i * H * E + K : value + at * H * V;
                stride[2 * i] = at < 0 ? E : K, stride[2 * i + 1] = at < 0 ? E : V;
                strengths[i] = at < 0 ? pending_strength[i] : strength[at];
            }
            NAME(tick_back)(r, keys, contents, stride, strengths, kind + frame * C, target + frame * C,
                            before + frame * C * H * E);
        }
        NAME(reads_back)(r, query + t * H * K, weight + t * H * N, slot + t * H * N,
                         read_given ? read_given + t * H * V : 0, weight_given ? weight_given + t * H * N : 0,
                         query_grad + t * H * K);
        for (int64_t h = 0; h < H; h++) {
            const REAL *grad = r->frame_grad + (c * H + h) * E;
            memcpy(key_grad + (t * H + h) * K, grad, K * sizeof(REAL));
            memcpy(value_grad + (t * H + h) * V, grad + K, V * sizeof(REAL));
        }
        strength_grad[t] = r->strength_grad[c];
    }
}

/* bank and bank_grad begin as those after the pass, frame_grad and frame_strength_grad as those of the pending tokens
   after it; they end as those before it. Gradients of tokens are zeros where there is padding. */
void NAME(backward)(const REAL *query, const REAL *key, const REAL *value, const REAL *strength, const REAL *pending,
                    const REAL *pending_strength, const int64_t *start, const int64_t *lengths, const REAL *weight,
                    const int64_t *slot, const uint8_t *kind, const int64_t *target, const REAL *before,
                    const REAL *read_given, const REAL *weight_given, REAL *bank, REAL *bank_grad, REAL *frame_grad,
                    REAL *frame_strength_grad, REAL *query_grad, REAL *key_grad, REAL *value_grad, REAL *strength_grad,
                    sizes n, policy p) {
    const int64_t size = n.H * (n.K + n.V), keys = n.H * n.K, contents = n.H * n.V, reads = n.H * n.N;
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < n.B; b++) {
        const unsigned mode = flush_subnormals();
        const int64_t t = b * n.T, tick = b * n.G * n.C, first = b * n.C, length = lengths ? lengths[b] : n.T;
        const NAME(row_back) r = {n,
                                  p,
                                  bank + b * n.J * size,
                                  bank_grad + b * n.J * size,
                                  frame_grad + first * size,
                                  frame_strength_grad + first};
        for (int64_t c = (start[b] + length) % n.C; c < n.C; c++) { /* empty places after the pass */
            memset(r.frame_grad + c * size, 0, size * sizeof(REAL));
            r.strength_grad[c] = 0;
        }
        NAME(pass_back)(&r, start[b], length, query + t * keys, key + t * keys, value + t * contents, strength + t,
                        pending + first * size, pending_strength + first, weight + t * reads, slot + t * reads,
                        kind + tick, target + tick, before + tick * size, read_given ? read_given + t * contents : 0,
                        weight_given ? weight_given + t * reads : 0, query_grad + t * keys, key_grad + t * keys,
                        value_grad + t * contents, strength_grad + t);
        for (int64_t c = start[b] % n.C; c < n.C; c++) { /* and before it */
            memset(r.frame_grad + c * size, 0, size * sizeof(REAL));
            r.strength_grad[c] = 0;
        }
        restore_subnormals(mode);
    }
}
