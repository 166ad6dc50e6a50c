/* SPDX-License-Identifier: Apache-2.0 */
/* The memory that a server and its clients share, as each end maps and seals it. */
#ifndef JMK_MAP_H
#define JMK_MAP_H

#include <stdbool.h>
#include <stdint.h>

/* Bytes in front of the ring: one page of memory, the log's header page. */
uint64_t jmk_map_header(void);

/*
 * Map a log whose ring has size bytes: the header page, then the ring twice. fd: its memfd, or -1 for
 * memory without one. protection and flags are those of mmap(2), flags beside MAP_SHARED. 0, or -errno.
 */
int jmk_map_log(int fd, uint64_t size, int protection, int flags, uint8_t **area);

/* NULL is none. */
void jmk_unmap_log(const void *area, uint64_t size);

/* Seal a log's memfd, once the writer has its map: nobody gets another one to write to. */
bool jmk_map_seal_log(int fd);

/*
 * What a reader asks of a log's memfd: can nobody change it under its readers? Is its size one that a
 * log can have? Then *size is the ring's. 0, JMK_E_LOG, JMK_E_SHAPE, or -errno.
 */
int jmk_map_check_log(int fd, uint64_t *size);

/* The same of a page of size bytes, which its reader may write to. */
int jmk_map_check_page(int fd, uint64_t size);

#endif
