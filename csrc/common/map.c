/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory that a server and its clients share
 *
 * A log is one memfd: a header page (page.h), then the ring. The ring is mapped twice back to back, so
 * that a frame, and any run of frames, is contiguous wherever it starts. The server maps it for writing
 * and then seals it; a client maps it for reading, and believes nothing: it looks at the seals and at
 * the kind of the pages first, so that to read the map can neither fault nor use memory.
 */
#include "common/map.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "jumiks.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

uint64_t jmk_map_header(void) {
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* ---- mapping ---- */

/* The ring once more, behind the first. Of memory without a file, mremap makes a second map. */
static void *map_again(uint8_t *ring, uint64_t size, int fd, int protection, int flags) {
    if (fd < 0)
        return mremap(ring, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, ring + size);
    return mmap(ring + size, size, protection, flags, fd, (off_t)jmk_map_header());
}

int jmk_map_log(int fd, uint64_t size, int protection, int flags, uint8_t **out) {
    uint64_t header = jmk_map_header();
    uint8_t *area = mmap(NULL, header + 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (area == MAP_FAILED)
        return -errno;
    flags |= MAP_SHARED | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0);
    if (mmap(area, header + size, protection, flags, fd, 0) == MAP_FAILED ||
        map_again(area + header, size, fd, protection, flags) == MAP_FAILED) {
        int error = -errno;
        jmk_unmap_log(area, size);
        return error;
    }
    *out = area;
    return 0;
}

void jmk_unmap_log(const void *area, uint64_t size) {
    if (area)
        munmap((void *)(uintptr_t)area, jmk_map_header() + 2 * size);
}

/* ---- seals ---- */

bool jmk_map_seal_log(int fd) {
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;

    return fd >= 0 && fcntl(fd, F_ADD_SEALS, seals) == 0;
}

/*
 * Has it all of these seals, and is it memory of ordinary pages? Huge pages have seals too, and a hole
 * that is cut into them may find none left to fill it: to read there would be SIGBUS.
 */
static int check_seals(int fd, int needed) {
    int seals = fcntl(fd, F_GET_SEALS);
    struct statfs kind;

    if (seals < 0 || (seals & needed) != needed)
        return JMK_E_LOG;
    if (fstatfs(fd, &kind) < 0)
        return -errno;
    return kind.f_type == TMPFS_MAGIC ? 0 : JMK_E_LOG;
}

/* It must have no holes: to read one would fill it, on our account. */
int jmk_map_check_log(int fd, uint64_t *size) {
    uint64_t header = jmk_map_header();
    struct stat stat;
    int error = check_seals(fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE);

    if (error == JMK_E_LOG)
        error = check_seals(fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    if (error)
        return error;
    if (fstat(fd, &stat) < 0)
        return -errno;
    *size = (uint64_t)stat.st_size - header;
    if ((uint64_t)stat.st_size < 2 * header || *size & (*size - 1) ||
        stat.st_blocks < stat.st_size / 512)
        return JMK_E_SHAPE;
    return 0;
}

int jmk_map_check_page(int fd, uint64_t size) {
    struct stat stat;
    int error = check_seals(fd, F_SEAL_SHRINK);

    if (error)
        return error;
    if (fstat(fd, &stat) < 0)
        return -errno;
    return (uint64_t)stat.st_size < size ? JMK_E_SHAPE : 0;
}
