// How many multiplications and additions one core can do at best: products summed in as many independent accumulators
// as there are registers to spare, none of which waits for another.
#include <stdint.h>

#if defined(__AVX512F__)
enum { BYTES = 64, ACCUMULATORS = 24 };
#elif defined(__AVX__)
enum { BYTES = 32, ACCUMULATORS = 12 };
#elif defined(__aarch64__)
enum { BYTES = 16, ACCUMULATORS = 24 };
#else
enum { BYTES = 16, ACCUMULATORS = 12 };
#endif

typedef float Vector __attribute__((vector_size(BYTES)));

// Floating-point operations of one turn.
int64_t operations(void) { return 2 * ACCUMULATORS * (BYTES / sizeof(float)); }

// What comes out is of no interest, but must depend on every turn.
float run(int64_t turns) {
  Vector sums[ACCUMULATORS];
  for (int i = 0; i < ACCUMULATORS; i++) sums[i] = (Vector){0} + (float)i;
  const Vector factor = (Vector){0} + 0.999f, term = (Vector){0} + 1e-3f;
  for (int64_t turn = 0; turn < turns; turn++) {
#pragma GCC unroll 24
    for (int i = 0; i < ACCUMULATORS; i++) sums[i] = sums[i] * factor + term;
  }
  Vector all = {0};
  for (int i = 0; i < ACCUMULATORS; i++) all += sums[i];
  float total = 0;
  for (unsigned lane = 0; lane < BYTES / sizeof(float); lane++) total += all[lane];
  return total;
}
