// Causal attention of packed documents in bf16, forward and backward, by the processor's own bf16 products.
//
// A document and a head (backward: a document and a key-value head) are one task, and tasks are shared among threads.
// Documents are filled up to a multiple of 32 tokens with zeros in scratch memory only. Scores, their softmax and all
// sums are fp32; softmax weights and the gradients of scores are rounded to bf16 once, where they become operands.
//
// Every product is of blocks of 32 x 32 (`block` below), in one of three ways: AMX's tiles, AVX-512's bf16 dot products,
// or plain loops, which are there for the tests on any machine. The right operand of a block lies in the order that AMX
// wants: tiles of 16 columns by 32 summed numbers, pairs of summed numbers side by side, 512 numbers a tile.
// Suffixes of names: `..._rows` packs pairs of tokens, `..._channels` pairs of channels.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "formats.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__AVX512F__) && defined(__AVX512BF16__)
#define HAS_DOTS
#endif
#if defined(HAS_TILES) || defined(HAS_DOTS)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t BLOCK = 32, COLUMNS = 16, TILE = 512;

int64_t filled(int64_t length) { return (length + BLOCK - 1) / BLOCK * BLOCK; }

// c (+)= a b of a block: c and a have 32 rows `c_row` and `a_row` elements apart; `steps` times 32 numbers are summed.
// The second column tile of b lies `b_columns` elements behind the first, the next step's tile TILE elements.
struct Plain {
    static void begin() {}
    static void end() {}
    static void block(float *c, int64_t c_row, bool add, const bf16 *a, int64_t a_row, const bf16 *b, int64_t b_columns,
                      int64_t steps) {
        for (int64_t row = 0; row < BLOCK; row++) {
            for (int64_t column = 0; column < BLOCK; column++) {
                const bf16 *tile = b + column / COLUMNS * b_columns + column % COLUMNS * 2;
                float sum = add ? c[row * c_row + column] : 0.0f;
                for (int64_t k = 0; k < steps * BLOCK; k++)
                    sum += load(a[row * a_row + k]) * load(tile[k / BLOCK * TILE + k % BLOCK / 2 * BLOCK + k % 2]);
                c[row * c_row + column] = sum;
            }
        }
    }
};

#ifdef HAS_DOTS
struct Dots {
    static void begin() {}
    static void end() {}
    static void block(float *c, int64_t c_row, bool add, const bf16 *a, int64_t a_row, const bf16 *b, int64_t b_columns,
                      int64_t steps) {
        for (int64_t top = 0; top < BLOCK; top += 8) {
            __m512 sums[8][2];
            for (int64_t row = 0; row < 8; row++)
                for (int64_t half = 0; half < 2; half++)
                    sums[row][half] = add ? _mm512_loadu_ps(c + (top + row) * c_row + half * COLUMNS) : _mm512_setzero_ps();
            for (int64_t step = 0; step < steps; step++) {
                for (int64_t pair = 0; pair < COLUMNS; pair++) {
                    const bf16 *at = b + step * TILE + pair * BLOCK;
                    __m512bh left = (__m512bh)_mm512_loadu_si512(at), right = (__m512bh)_mm512_loadu_si512(at + b_columns);
                    for (int64_t row = 0; row < 8; row++) {
                        int32_t both;
                        std::memcpy(&both, a + (top + row) * a_row + step * BLOCK + pair * 2, 4);
                        __m512bh factor = (__m512bh)_mm512_set1_epi32(both);
                        sums[row][0] = _mm512_dpbf16_ps(sums[row][0], factor, left);
                        sums[row][1] = _mm512_dpbf16_ps(sums[row][1], factor, right);
                    }
                }
            }
            for (int64_t row = 0; row < 8; row++)
                for (int64_t half = 0; half < 2; half++)
                    _mm512_storeu_ps(c + (top + row) * c_row + half * COLUMNS, sums[row][half]);
        }
    }
};
#endif

#ifdef HAS_TILES
struct Tiles {
    static void begin() {
        struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        _tile_loadconfig(&config);
    }
    static void end() { _tile_release(); }
    static void block(float *c, int64_t c_row, bool add, const bf16 *a, int64_t a_row, const bf16 *b, int64_t b_columns,
                      int64_t steps) {
        float *below = c + COLUMNS * c_row;
        if (add) {
            _tile_loadd(0, c, c_row * 4);
            _tile_loadd(1, c + COLUMNS, c_row * 4);
            _tile_loadd(2, below, c_row * 4);
            _tile_loadd(3, below + COLUMNS, c_row * 4);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t step = 0; step < steps; step++) {
            _tile_loadd(4, a + step * BLOCK, a_row * 2);
            _tile_loadd(6, b + step * TILE, 64);
            _tile_loadd(7, b + step * TILE + b_columns, 64);
            _tile_loadd(5, a + COLUMNS * a_row + step * BLOCK, a_row * 2);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, c_row * 4);
        _tile_stored(1, c + COLUMNS, c_row * 4);
        _tile_stored(2, below, c_row * 4);
        _tile_stored(3, below + COLUMNS, c_row * 4);
    }
};
#endif

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

// Memory of one thread, handed out in pieces that begin at cache lines.
class Scratch {
   public:
    explicit Scratch(int64_t bytes) : memory_(static_cast<char *>(std::aligned_alloc(64, bytes))), next_(memory_.get()) {}
    void restart() { next_ = memory_.get(); }
    template <typename T>
    T *take(int64_t number) {
        T *found = reinterpret_cast<T *>(next_);
        next_ += (number * int64_t(sizeof(T)) + 63) / 64 * 64;
        return found;
    }

   private:
    struct Free {
        void operator()(char *memory) const { std::free(memory); }
    };
    std::unique_ptr<char, Free> memory_;
    char *next_;
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

// x^T as a right operand: columns are tokens, channels are summed. Tile (token / 16, channel / 32).
void pack_channels(const bf16 *x, int64_t number, int64_t channels, bf16 *out) {
    int64_t steps = channels / BLOCK;
    for (int64_t row = 0; row < number; row++) {
        const bf16 *from = x + row * channels;
        bf16 *to = out + row / COLUMNS * steps * TILE + row % COLUMNS * 2;
        for (int64_t pair = 0; pair < channels / 2; pair++)
            std::memcpy(to + pair * BLOCK, from + pair * 2, 4);  // 16 pairs fill a tile: the next step lies behind it
    }
}

// x as a right operand: columns are channels, tokens are summed. Tile (channel / 16, token / 32).
void pack_rows(const bf16 *x, int64_t row, int64_t number, int64_t columns, bf16 *out) {
    int64_t steps = number / BLOCK;
    for (int64_t pair = 0; pair < number / 2; pair++) {
        const bf16 *first = x + pair * 2 * row, *second = first + row;
        for (int64_t tile = 0; tile < columns / COLUMNS; tile++) {
            bf16 *to = out + (tile * steps + pair / COLUMNS) * TILE + pair % COLUMNS * BLOCK;
            uint32_t both[COLUMNS];
            for (int64_t c = 0; c < COLUMNS; c++)
                both[c] = uint32_t(first[tile * COLUMNS + c].bits) | uint32_t(second[tile * COLUMNS + c].bits) << 16;
            std::memcpy(to, both, sizeof(both));
        }
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
extern "C" int64_t attention_ways() {
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
// the arguments. `way` is one bit of `attention_ways`.
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
