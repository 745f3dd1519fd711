/* libFuzzer within a Python process: tools/fuzz.py loads this as a library, and hands it a target's address (tests/face/fuzz_*.pyx).
 *
 * The modules under test are ordinary extension modules, built with -fsanitize=fuzzer-no-link: their counters register when they are imported,
 * with this library, which is preloaded. */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef const char *(*target_t)(const uint8_t *data, size_t n);

extern int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*callback)(const uint8_t *data, size_t n));

static target_t target;

static int run_one(const uint8_t *data, size_t n) {
    const char *why = target(data, n);
    if (why != NULL) {
        fprintf(stderr, "fuzz: broken promise: %s\n", why);
        fflush(stderr);
        abort(); /* libFuzzer catches it and writes the input down */
    }
    return 0;
}

__attribute__((visibility("default"))) int fuzz(target_t what, int argc, char **argv) {
    target = what;
    return LLVMFuzzerRunDriver(&argc, &argv, run_one);
}
