// Causal attention of packed documents in bf16, forward and backward, by the processor's own bf16 products.
//
// A document and a head (backward: a document and a key-value head) are one task, and tasks are shared among threads.
// Documents are filled up to a multiple of 32 tokens with zeros in scratch memory only. Scores, their softmax and all
// sums are fp32; softmax weights and the gradients of scores are rounded to bf16 once, where they become operands.
//
// Every product is of blocks of 32 x 32 (`blocks.h`).
// Suffixes of names: `..._rows` packs pairs of tokens, `..._channels` pairs of channels.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "blocks.h"

namespace {

// A head of a tensor [heads, tokens, channels], from a document's first token on.
template <typename T>
struct Rows {
    T *first;
    int64_t stride;
    T *row(int64_t token) const { return first + token * stride; }
};

template <typename T>
struct Heads {
    T *data;
    int64_t head, token;
    Rows<T> of(int64_t which, int64_t start) const { return {data + which * head + start * token, token}; }
};

// `number` rows of x, zeros behind the last one, dense.
void copy_rows(const Rows<const bf16> &x, int64_t from, int64_t number, int64_t real, int64_t channels, bf16 *out) {
    for (int64_t row = 0; row < number; row++) {
        if (from + row < real)
            std::memcpy(out + row * channels, x.row(from + row), channels * sizeof(bf16));
        else
            std::memset(out + row * channels, 0, channels * sizeof(bf16));
    }
}

struct Job {
    const int64_t *lengths;
    int64_t documents, heads, kv_heads, channels, tokens;
    float scale;
    int64_t window;  // positions that a query sees, its own included; all: at least the longest document

    int64_t group() const { return heads / kv_heads; }
    int64_t longest() const { return *std::max_element(lengths, lengths + documents); }

    std::vector<int64_t> starts() const {
        std::vector<int64_t> found(documents, 0);
        std::partial_sum(lengths, lengths + documents - 1, found.begin() + 1);
        return found;
    }

    // Long documents first, so that no thread is left with one at the end.
    std::vector<int64_t> order() const {
        std::vector<int64_t> found(documents);
        std::iota(found.begin(), found.end(), 0);
        std::stable_sort(found.begin(), found.end(), [this](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
        return found;
    }

    int64_t first_key(int64_t query) const { return std::max<int64_t>(0, query - window + 1); }
};

template <class By>
void forward_task(const Job &job, int64_t length, Rows<const bf16> q, Rows<const bf16> k, Rows<const bf16> v,
                  Rows<bf16> out, float *lse, Scratch &scratch) {
    int64_t width = filled(length), channels = job.channels, steps = channels / BLOCK;
    scratch.restart();
    bf16 *dense = scratch.take<bf16>(width * channels);
    bf16 *k_channels = scratch.take<bf16>(width * channels), *v_rows = scratch.take<bf16>(width * channels);
    copy_rows(k, 0, width, length, channels, dense);
    pack_channels(dense, width, channels, k_channels);
    copy_rows(v, 0, width, length, channels, dense);
    pack_rows(dense, channels, width, channels, v_rows);
    bf16 *queries = scratch.take<bf16>(BLOCK * channels), *weights = scratch.take<bf16>(BLOCK * width);
    float *scores = scratch.take<float>(BLOCK * width), *sums = scratch.take<float>(BLOCK * channels), totals[BLOCK];
    for (int64_t at = 0; at < length; at += BLOCK) {
        int64_t from = job.first_key(at) / BLOCK * BLOCK, to = at + BLOCK, number = std::min(BLOCK, length - at);
        copy_rows(q, at, BLOCK, length, channels, queries);
        for (int64_t key = from; key < to; key += BLOCK)
            By::block(scores + key, width, false, queries, channels, k_channels + key / COLUMNS * steps * TILE, steps * TILE,
                      steps);
        for (int64_t row = 0; row < BLOCK; row++) {
            float *x = scores + row * width, most = -INFINITY, total = 0.0f;
            bf16 *w = weights + row * width;
            int64_t first = job.first_key(at + row), last = row < number ? at + row + 1 : first;
#pragma omp simd reduction(max : most)
            for (int64_t key = first; key < last; key++) most = x[key] > most ? x[key] : most;
            for (int64_t key = from; key < first; key++) w[key].bits = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t key = first; key < last; key++) {
                float weight = exponential((x[key] - most) * job.scale);
                total += weight;
                store(w + key, weight);
            }
            for (int64_t key = std::max(first, last); key < to; key++) w[key].bits = 0;
            totals[row] = total;
            if (row < number) lse[at + row] = most * job.scale + std::log(total);
        }
        int64_t between = width / BLOCK * TILE;
        for (int64_t c = 0; c < channels; c += BLOCK)
            By::block(sums + c, channels, false, weights + from, width,
                      v_rows + c / COLUMNS * between + from / BLOCK * TILE, between, (to - from) / BLOCK);
        for (int64_t row = 0; row < number; row++) {
            bf16 *y = out.row(at + row);
            float factor = 1.0f / totals[row];
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) store(y + c, sums[row * channels + c] * factor);
        }
    }
}

// What the backward of one head needs of its queries, filled up.
struct Queries {
    bf16 *q_channels, *q_rows, *do_channels, *do_rows;
    float *lse, *delta;  // delta = sum over channels of out dout
    float *dq;           // [channels, width]
};

// The gradients of scores of 32 keys from `key` on, transposed: of `keys` x `queries`, in every form that is multiplied.
template <class By>
void backward_block(const Job &job, int64_t length, int64_t key, int64_t stop, const bf16 *k, const bf16 *v,
                    const Queries &of, int64_t width, bf16 *weights, bf16 *dscores) {
    int64_t channels = job.channels, steps = channels / BLOCK;
    alignas(64) float scores[BLOCK * BLOCK], dweights[BLOCK * BLOCK];
    for (int64_t query = key; query < stop; query += BLOCK) {
        int64_t tile = query / COLUMNS * steps * TILE;
        By::block(scores, BLOCK, false, k + key * channels, channels, of.q_channels + tile, steps * TILE, steps);
        By::block(dweights, BLOCK, false, v + key * channels, channels, of.do_channels + tile, steps * TILE, steps);
        const float *lse = of.lse + query, *delta = of.delta + query;
        for (int64_t row = 0; row < BLOCK; row++) {
            // Queries that see this key: of this block those from `first` on and before `last`.
            int32_t first = int32_t(key + row - query), last = int32_t(std::min(length, key + row + job.window) - query);
            last = key + row < length ? last : 0;
            bf16 *w = weights + row * width + query, *d = dscores + row * width + query;
            const float *x = scores + row * BLOCK, *dx = dweights + row * BLOCK;
#pragma omp simd
            for (int32_t n = 0; n < int32_t(BLOCK); n++) {
                float weight = exponential(x[n] * job.scale - lse[n]), gradient = weight * (dx[n] - delta[n]) * job.scale;
                bool sees = (n >= first) & (n < last);
                store(w + n, sees ? weight : 0.0f);
                store(d + n, sees ? gradient : 0.0f);
            }
        }
    }
}

template <class By>
void backward_task(const Job &job, int64_t document_start, int64_t length, int64_t kv_head, const Heads<const bf16> *in,
                   const Heads<bf16> *out, const float *lse, Scratch &scratch) {
    int64_t width = filled(length), channels = job.channels, steps = width / BLOCK;
    scratch.restart();
    auto take = [&] { return scratch.take<bf16>(width * channels); };
    bf16 *k = take(), *v = take(), *k_turned = take(), *dense = take(), *dout = take();
    Queries of{take(), take(), take(), take(), scratch.take<float>(width), scratch.take<float>(width),
               scratch.take<float>(width * channels)};
    float *dk = scratch.take<float>(width * channels), *dv = scratch.take<float>(width * channels);
    bf16 *weights = scratch.take<bf16>(BLOCK * width), *dscores = scratch.take<bf16>(BLOCK * width);
    bf16 *dscores_rows = scratch.take<bf16>(BLOCK * width);
    copy_rows(in[1].of(kv_head, document_start), 0, width, length, channels, k);
    copy_rows(in[2].of(kv_head, document_start), 0, width, length, channels, v);
    for (int64_t c = 0; c < channels; c++)
        for (int64_t token = 0; token < width; token++) k_turned[c * width + token] = k[token * channels + c];
    std::memset(dk, 0, width * channels * sizeof(float));
    std::memset(dv, 0, width * channels * sizeof(float));
    for (int64_t head = kv_head * job.group(); head < (kv_head + 1) * job.group(); head++) {
        Rows<const bf16> o = in[3].of(head, document_start), od = in[4].of(head, document_start);
        copy_rows(in[0].of(head, document_start), 0, width, length, channels, dense);
        pack_channels(dense, width, channels, of.q_channels);
        pack_rows(dense, channels, width, channels, of.q_rows);
        copy_rows(od, 0, width, length, channels, dout);
        pack_channels(dout, width, channels, of.do_channels);
        pack_rows(dout, channels, width, channels, of.do_rows);
        for (int64_t token = 0; token < width; token++) {
            float dot = 0.0f;
            if (token < length) {
                const bf16 *x = o.row(token), *y = od.row(token);
#pragma omp simd reduction(+ : dot)
                for (int64_t c = 0; c < channels; c++) dot += load(x[c]) * load(y[c]);
            }
            of.delta[token] = dot;
            of.lse[token] = token < length ? lse[head * job.tokens + document_start + token] : 0.0f;
        }
        std::memset(of.dq, 0, width * channels * sizeof(float));
        for (int64_t key = 0; key < width; key += BLOCK) {
            int64_t stop = std::min(width, filled(key + BLOCK + job.window - 1));
            backward_block<By>(job, length, key, stop, k, v, of, width, weights, dscores);
            for (int64_t c = 0; c < channels; c += BLOCK) {
                int64_t tile = (c / COLUMNS * steps + key / BLOCK) * TILE, between = steps * TILE;
                int64_t sum = key * channels + c, number = (stop - key) / BLOCK;
                By::block(dv + sum, channels, true, weights + key, width, of.do_rows + tile, between, number);
                By::block(dk + sum, channels, true, dscores + key, width, of.q_rows + tile, between, number);
            }
            pack_rows(dscores + key, width, BLOCK, stop - key, dscores_rows);
            for (int64_t c = 0; c < channels; c += BLOCK)
                for (int64_t query = key; query < stop; query += BLOCK)
                    By::block(of.dq + c * width + query, width, true, k_turned + c * width + key, width,
                              dscores_rows + (query - key) / COLUMNS * TILE, TILE, 1);
        }
        Rows<bf16> dq = out[0].of(head, document_start);
        for (int64_t token = 0; token < length; token++)
            for (int64_t c = 0; c < channels; c++) store(dq.row(token) + c, of.dq[c * width + token]);
    }
    Rows<bf16> dk_out = out[1].of(kv_head, document_start), dv_out = out[2].of(kv_head, document_start);
    for (int64_t token = 0; token < length; token++) {
        bf16 *to_k = dk_out.row(token), *to_v = dv_out.row(token);
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) {
            store(to_k + c, dk[token * channels + c]);
            store(to_v + c, dv[token * channels + c]);
        }
    }
}

// Bytes of scratch that suffice for a document filled up to `width`; whole cache lines.
int64_t forward_bytes(int64_t width, int64_t channels) {
    return (width * channels * 3 + BLOCK * (channels + width)) * 2 + BLOCK * (width + channels) * 4 + 4096;
}

int64_t backward_bytes(int64_t width, int64_t channels) {
    return (width * channels * 9 + 3 * BLOCK * width) * 2 + (width * channels * 3 + width * 2) * 4 + 4096;
}

template <class By>
void forward(const Job &job, const Heads<const bf16> *in, const Heads<bf16> &out, float *lse) {
    std::vector<int64_t> starts = job.starts(), order = job.order();
    int64_t bytes = forward_bytes(filled(job.longest()), job.channels) / 64 * 64;
#pragma omp parallel
    {
        Scratch scratch(bytes);
        By::begin();
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < job.documents * job.heads; task++) {
            int64_t document = order[task / job.heads], head = task % job.heads, start = starts[document];
            int64_t kv_head = head / job.group();
            forward_task<By>(job, job.lengths[document], in[0].of(head, start), in[1].of(kv_head, start),
                             in[2].of(kv_head, start), out.of(head, start), lse + head * job.tokens + start, scratch);
        }
        By::end();
    }
}

template <class By>
void backward(const Job &job, const Heads<const bf16> *in, const Heads<bf16> *out, const float *lse) {
    std::vector<int64_t> starts = job.starts(), order = job.order();
    int64_t bytes = backward_bytes(filled(job.longest()), job.channels) / 64 * 64;
#pragma omp parallel
    {
        Scratch scratch(bytes);
        By::begin();
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < job.documents * job.kv_heads; task++) {
            int64_t document = order[task / job.kv_heads];
            backward_task<By>(job, starts[document], job.lengths[document], task % job.kv_heads, in, out, lse, scratch);
        }
        By::end();
    }
}

}  // namespace

// The ways of multiplying that this processor has: bit 0 plain loops, bit 1 dot products, bit 2 tiles, which the
// system has to be asked for once.
extern "C" int64_t ways() {
    int64_t found = 1;
#ifdef HAS_DOTS
    found |= 2;
#endif
#ifdef HAS_TILES
    constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    if (syscall(SYS_arch_prctl, request, tile_data) == 0) found |= 4;
#endif
    return found;
}

// Tensors are [heads, tokens, channels]; `strides` holds those of heads and tokens, one pair a tensor in the order of
// the arguments. `way` is one bit of `ways`.
extern "C" void attention_forward_bf16(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, const int64_t *strides,
                                       float *lse, const int64_t *lengths, int64_t documents, int64_t heads,
                                       int64_t kv_heads, int64_t channels, int64_t tokens, float scale, int64_t window,
                                       int64_t way) {
    Job job{lengths, documents, heads, kv_heads, channels, tokens, scale, window};
    const int64_t *s = strides;
    Heads<const bf16> in[] = {{q, s[0], s[1]}, {k, s[2], s[3]}, {v, s[4], s[5]}};
    Heads<bf16> written{out, s[6], s[7]};
#ifdef HAS_TILES
    if (way == 4) return forward<Tiles>(job, in, written, lse);
#endif
#ifdef HAS_DOTS
    if (way == 2) return forward<Dots>(job, in, written, lse);
#endif
    forward<Plain>(job, in, written, lse);
}

extern "C" void attention_backward_bf16(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *out, const bf16 *dout,
                                        bf16 *dq, bf16 *dk, bf16 *dv, const int64_t *strides, const float *lse,
                                        const int64_t *lengths, int64_t documents, int64_t heads, int64_t kv_heads,
                                        int64_t channels, int64_t tokens, float scale, int64_t window, int64_t way) {
    Job job{lengths, documents, heads, kv_heads, channels, tokens, scale, window};
    const int64_t *s = strides;
    Heads<const bf16> in[] = {{q, s[0], s[1]}, {k, s[2], s[3]}, {v, s[4], s[5]}, {out, s[6], s[7]}, {dout, s[8], s[9]}};
    Heads<bf16> written[] = {{dq, s[10], s[11]}, {dk, s[12], s[13]}, {dv, s[14], s[15]}};
#ifdef HAS_TILES
    if (way == 4) return backward<Tiles>(job, in, written, lse);
#endif
#ifdef HAS_DOTS
    if (way == 2) return backward<Dots>(job, in, written, lse);
#endif
    backward<Plain>(job, in, written, lse);
}
