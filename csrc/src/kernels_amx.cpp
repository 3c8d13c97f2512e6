// The kernel table for this instruction set: the shared sources over its lanes.
#include "tokenvm/lanes_avx512.hpp"
// The lanes come first.
#include "tokenvm/entry.hpp"
#include "tokenvm/lane_math.hpp"
// Then what is built on them.
#include "tokenvm/code_lanes.hpp"
#include "tokenvm/dot.hpp"
#include "tokenvm/lane_attention.hpp"
#include "tokenvm/lane_bitpack.hpp"
#include "tokenvm/lane_quantise.hpp"
#include "tokenvm/lane_rowwise.hpp"
#include "tokenvm/lane_epilogue.hpp"
#include "tokenvm/lane_linear.hpp"
// And what the tile unit does better.
#include "tokenvm/amx_attention.hpp"
#include "tokenvm/amx_linear.hpp"

namespace tokenvm {

const Kernels& amx_kernels() {
  static constexpr Kernels table{.name = "amx",
                                 .prepare_rows = entry<tile_rows>,
                                 .linear_bf16 = entry<tile_linear>,
                                 .linear_fp32 = entry<linear_fp32>,
                                 .attend_bf16 = entry<attend_page<DotBf16>>,
                                 .attend_fp32 = entry<attend_page<DotFp32>>,
                                 .walk_bf16 = entry<walk_tiles>,
                                 .fold = entry<fold>,
                                 .quantise = entry<quantise_head>,
                                 .dequantise = entry<dequantise_head>,
                                 .finish = entry<finish>,
                                 .rms_norm = entry<rms_norm>,
                                 .silu_mul = entry<silu_mul>,
                                 .cast = entry<cast_row>,
                                 .rope = entry<rope>,
                                 .bitpack_encode = entry<bitpack_encode_lanes>,
                                 .bitpack_decode = entry<bitpack_decode_lanes>};
  return table;
}

}  // namespace tokenvm
