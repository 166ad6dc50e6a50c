/* SPDX-License-Identifier: Apache-2.0 */
/* Closing descriptors whose close may take long, in threads that nobody waits for. */
#ifndef JMK_DISPOSE_H
#define JMK_DISPOSE_H

#include "jumiks.h"

#endif
