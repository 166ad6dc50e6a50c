/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target on files, without a fuzzer: the corpus, or what one has found. */
#include "fuzz.h"

static void replay(const char *name) {
    FILE *file = fopen(name, "rb");
    uint8_t *data;
    long size;

    CHECK(file && fseek(file, 0, SEEK_END) == 0);
    size = ftell(file);
    rewind(file);
    /* Of its exact size, so that a sanitizer sees a step beyond it. */
    data = malloc(size > 0 ? (size_t)size : 1);
    CHECK(data && size >= 0);
    CHECK_EQUAL(fread(data, 1, (size_t)size, file), size);
    fclose(file);
    fprintf(stderr, "%s\n", name);
    LLVMFuzzerTestOneInput(data, (size_t)size);
    free(data);
}

int main(int count, char **names) {
    CHECK(count > 1);
    for (int i = 1; i < count; i++)
        replay(names[i]);
    return 0;
}
