/* SPDX-License-Identifier: Apache-2.0 */
/* Each return code has a text of its own, and what is no code has one too. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "jumiks.h"

int main(void) {
    const char *unknown = jmk_error_text(JMK_E_LAST);

    for (int code = 0; code < JMK_E_LAST; code++) {
        const char *text = jmk_error_text(code);

        CHECK(text && *text);
        CHECK(strcmp(text, unknown) != 0);
        for (int other = 0; other < code; other++)
            CHECK(strcmp(text, jmk_error_text(other)) != 0);
    }
    CHECK(strcmp(jmk_error_text(JMK_E_LAST + 1), unknown) == 0);
    CHECK(strcmp(jmk_error_text(INT32_MAX), unknown) == 0);
    CHECK(strcmp(jmk_error_text(-ENOENT), strerror(ENOENT)) == 0);
    CHECK(strcmp(jmk_error_text(-EMFILE), strerror(EMFILE)) == 0);
    return 0;
}
