// Products of bf16 blocks of 32 x 32 with fp32 sums, in one of three ways: AMX's tiles, AVX-512's bf16 dot products, or
// plain loops, which are there for the tests on any machine.
//
// The right operand of a block lies in the order that AMX wants: tiles of 16 columns by 32 summed numbers, pairs of
// summed numbers side by side, 512 numbers a tile.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

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

inline int64_t filled(int64_t length) { return (length + BLOCK - 1) / BLOCK * BLOCK; }

// c (+)= a b of a block: c and a have 32 rows `c_row` and `a_row` elements apart; `steps` times 32 numbers are summed.
// The second column tile of b lies `b_columns` elements behind the first, the next step's tile TILE elements.
struct Plain {
    static void begin() {}
    static void end() {}
    static void block(float *c, int64_t c_row, bool add, const bf16 *a, int64_t a_row, const bf16 *b, int64_t b_columns,
                      int64_t steps, bool = true, bool = true) {
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
                      int64_t steps, bool = true, bool = true) {
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
        // Not by the intrinsic: gcc before 14 tells its optimiser of the first 8 of these 64 bytes only.
        __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
    }
    static void end() { _tile_release(); }
    // What is not asked for of the lower 16 rows and of the right 16 columns is left out.
    static void block(float *c, int64_t c_row, bool add, const bf16 *a, int64_t a_row, const bf16 *b, int64_t b_columns,
                      int64_t steps, bool lower = true, bool right = true) {
        __asm__ volatile("" ::: "memory");  // what was stored before is loaded as tiles
        float *below = c + COLUMNS * c_row;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        if (add) {
            _tile_loadd(0, c, c_row * 4);
            if (right) _tile_loadd(1, c + COLUMNS, c_row * 4);
            if (lower) _tile_loadd(2, below, c_row * 4);
            if (lower && right) _tile_loadd(3, below + COLUMNS, c_row * 4);
        }
        for (int64_t step = 0; step < steps; step++) {
            _tile_loadd(4, a + step * BLOCK, a_row * 2);
            _tile_loadd(6, b + step * TILE, 64);
            _tile_dpbf16ps(0, 4, 6);
            if (right) {
                _tile_loadd(7, b + step * TILE + b_columns, 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (lower) {
                _tile_loadd(5, a + COLUMNS * a_row + step * BLOCK, a_row * 2);
                _tile_dpbf16ps(2, 5, 6);
                if (right) _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, c, c_row * 4);
        if (right) _tile_stored(1, c + COLUMNS, c_row * 4);
        if (lower) _tile_stored(2, below, c_row * 4);
        if (lower && right) _tile_stored(3, below + COLUMNS, c_row * 4);
    }
};
#endif

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

// x^T as a right operand: columns are tokens, channels are summed. Tile (token / 16, channel / 32).
inline void pack_channels(const bf16 *x, int64_t number, int64_t channels, bf16 *out) {
    int64_t steps = channels / BLOCK;
    for (int64_t row = 0; row < number; row++) {
        const bf16 *from = x + row * channels;
        bf16 *to = out + row / COLUMNS * steps * TILE + row % COLUMNS * 2;
        for (int64_t pair = 0; pair < channels / 2; pair++)
            std::memcpy(to + pair * BLOCK, from + pair * 2, 4);  // 16 pairs fill a tile: the next step lies behind it
    }
}

// x as a right operand: columns are channels, tokens are summed. Tile (channel / 16, token / 32).
inline void pack_rows(const bf16 *x, int64_t row, int64_t number, int64_t columns, bf16 *out) {
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

}  // namespace
