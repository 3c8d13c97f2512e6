// The table of inner kernels that each instruction set fills in. Drivers (linear.cpp, attention.cpp, ...)
// check, cut the work into tasks and call through the active table; all tables compute the same bits
// ("k32-1").
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tokenvm/numerics.hpp"
#include "tokenvm/paging.hpp"

namespace tokenvm {

// Some query rows (row, head) against one kv head of one page.
struct PageJob {
  const float* q;  // [rows][head_dim], the values of the KV dtype
  const bf16*
      q_tiles;  // bf16 parts: the same as [ceil(rows/16)][head_dim/32][16][32], rows past the last zero
  std::int64_t rows;
  const std::int32_t* begin;  // row r sees the tokens [begin[r], end[r]) of the page
  const std::int32_t* end;
  const void* keys;    // [head_dim/w][tokens][w]
  const void* values;  // [tokens/w][head_dim][w]
  const void* ahead;   // the keys that are wanted next
  std::int64_t head_dim;
  std::int64_t tokens;
  float scale;
  float* scores;  // scratch, [ceil(rows/16)*16][tokens]
  float* acc;     // out, [rows][head_dim]; unspecified for a row that sees nothing
  float* peak;    // out, [rows]; -inf for a row that sees nothing
  float* mass;    // out, [rows]
};

// Folds what one page gave for some rows into their states; a row that saw nothing (peak -inf) keeps its
// state.
struct FoldJob {
  std::int64_t rows, head_dim;
  const float* page_acc;  // [rows][head_dim]
  const float* page_peak;
  const float* page_mass;
  const std::int64_t* place;  // row r's state is acc[place[r]][], peak[place[r]], mass[place[r]]
  float* acc;
  float* peak;
  float* mass;
};

// One kv head of a part, raw and coded.
struct CodeJob {
  void* raw;    // [2][tokens * head_dim] of bf16 (narrow) or fp32, in the order of the part
  void* coded;  // PartShape::head_bytes of the format
  std::int64_t head_dim, tokens;
  bool narrow;
  KvFormat format;  // not kRaw
};

// What becomes of the sums of a product: they are stored, or added to what is there; or the first half of the
// outputs are gates g, the second half ups u, and silu(g) * u is stored.
enum class Finish : int { kStore, kAdd, kSiluMul };

// The rows [row_begin, row_end) times the blocks of 16 outputs [block_begin, block_end) of a packed matrix.
// kSiluMul: the outputs are a multiple of 32, and the blocks are those of the gates.
struct LinearJob {
  const void* rows;  // as `prepare_rows` left them (bf16), or fp32 [total_rows][columns]
  const void* weight;
  std::int64_t columns;  // K
  std::int64_t outputs;  // N
  std::int64_t row_begin, row_end;
  std::int64_t block_begin, block_end;
  Finish finish;
  bool narrow;  // kSiluMul: out is bf16, else fp32
  void* out;    // [total_rows][outputs], kSiluMul: [total_rows][outputs/2]
};

struct Kernels {
  const char* name;
  bool wants_tiles;  // attention reads PageJob::q_tiles

  // Lays bf16 rows [row_begin, row_end) of x [total_rows][columns] out for linear_bf16. row_begin is a
  // multiple of 16.
  void (*prepare_rows)(const bf16* x, std::int64_t columns, std::int64_t row_begin, std::int64_t row_end,
                       void* rows);
  void (*linear_bf16)(const LinearJob& job);
  void (*linear_fp32)(const LinearJob& job);

  void (*attend_bf16)(const PageJob& job);
  void (*attend_fp32)(const PageJob& job);
  void (*fold)(const FoldJob& job);
  void (*quantise)(const CodeJob& job);    // raw to coded
  void (*dequantise)(const CodeJob& job);  // coded to raw
  // out = acc / mass + 0, fp32 or bf16.
  void (*finish)(const float* acc, float mass, std::int64_t head_dim, void* out, bool narrow);

  // One row: x += delta (unless null), out = x / rms(x) * weight.
  void (*rms_norm)(float* x, const float* delta, const float* weight, float eps, std::int64_t width,
                   void* out, bool narrow);
  void (*silu_mul)(const float* gate, const float* up, std::int64_t count, void* out, bool narrow);
  void (*cast)(const float* x, std::int64_t count, bf16* out);
  // Half-rotation of one head, to fp32 or bf16: cos_sin holds head_dim/2 cosines, then as many sines.
  void (*rope)(const float* x, const float* cos_sin, std::int64_t head_dim, void* out, bool narrow);

  // As in bitpack.hpp.
  std::uint64_t (*bitpack_encode)(const void* part, std::uint64_t nbytes, void* stored, std::uint64_t room);
  bool (*bitpack_decode)(const void* stored, std::uint64_t room, void* part, std::uint64_t nbytes);
};

// Bytes that prepare_rows may write for so many rows.
inline std::int64_t prepared_bytes(std::int64_t rows, std::int64_t columns) {
  return (rows + 15) / 16 * 16 * ((columns + 31) / 32 * 32) * static_cast<std::int64_t>(sizeof(float));
}

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& amx_kernels();
#endif

// The table in use: the best this CPU has, until select_kernels chooses.
const Kernels& kernels();
// Names of the tables this CPU can run, best first.
std::vector<std::string> available_kernels();
// False if the name is unknown or this CPU cannot run it; nothing changes then.
bool select_kernels(const std::string& name);

}  // namespace tokenvm
