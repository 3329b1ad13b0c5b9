// Philox-4x32-10 (Salmon et al., SC 2011): random words of many streams, each a pure function of key and position.
#include <stdint.h>
#include <string.h>

enum { ROUNDS = 10, BLOCKS = 32 };

typedef uint64_t Words __attribute__((vector_size(8 * BLOCKS)));
#define LOW 0xFFFFFFFFull

// out (block, word): the four words of `BLOCKS` neighbouring positions.
static void blocks(uint64_t position, uint32_t k0, uint32_t k1, int64_t out[4 * BLOCKS]) {
    Words c0, c1, c2 = {0}, c3 = {0};
    for (int i = 0; i < BLOCKS; i++) c0[i] = (position + i) & LOW, c1[i] = (position + i) >> 32;
    for (int round = 0; round < ROUNDS; round++, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
        // Of numbers below 2^32 the product fits.
        Words p0 = c0 * 0xD2511F53ull, p1 = c2 * 0xCD9E8D57ull;
        c0 = (p1 >> 32) ^ c1 ^ k0, c1 = p1 & LOW;
        c2 = (p0 >> 32) ^ c3 ^ k1, c3 = p0 & LOW;
    }
    for (int i = 0; i < BLOCKS; i++) out[4 * i] = c0[i], out[4 * i + 1] = c1[i], out[4 * i + 2] = c2[i], out[4 * i + 3] = c3[i];
}

// out (streams, count): the words of each stream from the block `position` on; a key is two words.
void random_words(int64_t streams, int64_t count, uint64_t position, const int64_t *key_0, const int64_t *key_1, int64_t *out) {
    int64_t last[4 * BLOCKS];
    for (int64_t s = 0; s < streams; s++, out += count)
        for (int64_t first = 0; first < count; first += 4 * BLOCKS) {
            int64_t left = count - first;
            blocks(position + first / 4, (uint32_t)key_0[s], (uint32_t)key_1[s], left < 4 * BLOCKS ? last : out + first);
            if (left < 4 * BLOCKS) memcpy(out + first, last, left * sizeof(int64_t));
        }
}
