/* SPDX-License-Identifier: Apache-2.0 */
/* Messages as frames: taken from a user's buffer, copied into bytes, and cut into packs. */
#include "python/objects.h"

#include <endian.h>
#include <string.h>

#define LEAST_ROOM 64

static void raise_fault(int fault, size_t offset, uint64_t found) {
    static const char *const names[JMK_FRAME_LAST] = {
        [JMK_FRAME_SHORT] = "short", [JMK_FRAME_KIND] = "kind",       [JMK_FRAME_FLAGS] = "flags",
        [JMK_FRAME_SIZE] = "size",   [JMK_FRAME_PADDING] = "padding",
    };

    jmk_raise_made("wrong_frame", Py_BuildValue("snK", names[fault], (Py_ssize_t)offset,
                                                (unsigned long long)found));
}

static int grow(struct jmk_gathered *self, size_t *room, size_t wanted) {
    void *slices = PyMem_Realloc(self->slices, wanted * sizeof *self->slices);

    if (!slices) {
        PyErr_NoMemory();
        return -1;
    }
    self->slices = slices;
    *room = wanted;
    return 0;
}

/* Not all have one size: note where each is. */
static int take_others(struct jmk_gathered *self, size_t offset) {
    const struct jmk_messages *rows = &self->rows;
    const Py_buffer *view = self->views;
    size_t room = 0;

    if (grow(self, &room, 2 * rows->count + LEAST_ROOM) < 0)
        return -1;
    for (size_t i = 0; i < rows->count; i++)
        self->slices[i] =
            (struct jmk_slice){(const char *)rows->rows + (ptrdiff_t)i * rows->stride, rows->size};
    while (offset < (size_t)view->len) {
        uint64_t found;
        int fault;

        if ((size_t)self->count == room && grow(self, &room, 2 * room) < 0)
            return -1;
        fault = jmk_frame_take(view->buf, (size_t)view->len, &offset, &self->slices[self->count],
                               &found);
        if (fault) {
            raise_fault(fault, offset, found);
            return -1;
        }
        self->count++;
    }
    return 0;
}

static int take_frames(struct jmk_gathered *self) {
    const Py_buffer *view = self->views;
    size_t offset = 0;
    uint64_t found;
    int fault = jmk_frames_take(view->buf, (size_t)view->len, &offset, &self->rows, &found);

    self->are_frames = true;
    self->count = (Py_ssize_t)self->rows.count;
    if (fault) {
        raise_fault(fault, offset, found);
        return -1;
    }
    return offset < (size_t)view->len ? take_others(self, offset) : 0;
}

PyObject *jmk_gather_frames(PyObject *module, PyObject *buffer) {
    struct jmk_types *types = PyModule_GetState(module);
    struct jmk_gathered *self = (struct jmk_gathered *)PyType_GenericAlloc(types->gathered, 0);

    if (!self)
        return NULL;
    self->views = PyMem_Calloc(1, sizeof *self->views);
    if (!self->views) {
        PyErr_NoMemory();
    } else if (PyObject_GetBuffer(buffer, self->views, PyBUF_SIMPLE) == 0) {
        self->view_count = 1;
        if (take_frames(self) == 0)
            return (PyObject *)self;
    } else if (PyErr_ExceptionMatches(PyExc_TypeError) ||
               PyErr_ExceptionMatches(PyExc_BufferError)) {
        bool scattered = PyErr_ExceptionMatches(PyExc_BufferError);

        PyErr_Clear();
        jmk_raise_made("no_frames", Py_BuildValue("OO", buffer, scattered ? Py_True : Py_False));
    }
    Py_DECREF(self);
    return NULL;
}

/* ---- cutting frames into packs ---- */

static bool is_of(const struct jmk_slice *message, uint64_t id) {
    uint64_t found;

    memcpy(&found, (const uint8_t *)message->data - sizeof found, sizeof found);
    return le64toh(found) == id;
}

static int add_pack(PyObject *packs, Py_ssize_t count, size_t end) {
    PyObject *pack = Py_BuildValue("nn", count, (Py_ssize_t)end);
    int result = pack ? PyList_Append(packs, pack) : -1;

    Py_XDECREF(pack);
    return result;
}

/* Fill packs. The offset of what is no frame of the message that is due; else the length, or SIZE_MAX
   with a Python error. */
static size_t cut(PyObject *packs, const Py_buffer *view, uint64_t due, size_t limit) {
    size_t length = (size_t)view->len, begin = 0, at = 0;
    Py_ssize_t count = 0;

    while (at < length) {
        struct jmk_slice message;
        size_t behind = at;
        uint64_t found;

        if (jmk_frame_take(view->buf, length, &behind, &message, &found) || !is_of(&message, due++))
            return at;
        if (count && behind - begin > limit) {
            if (add_pack(packs, count, at) < 0)
                return SIZE_MAX;
            begin = at;
            count = 0;
        }
        count++;
        at = behind;
    }
    return count && add_pack(packs, count, at) < 0 ? SIZE_MAX : at;
}

PyObject *jmk_split_frames(const Py_buffer *view, uint64_t first_id, size_t limit) {
    PyObject *packs = PyList_New(0);
    size_t upto = packs ? cut(packs, view, first_id, limit) : SIZE_MAX;

    if (upto == (size_t)view->len)
        return packs;
    Py_XDECREF(packs);
    return upto == SIZE_MAX ? NULL : PyLong_FromSize_t(upto);
}

PyObject *jmk_frame_bytes(const struct jmk_slice *items, Py_ssize_t count, uint64_t first_id) {
    uint64_t length = jmk_frames_length(items, (size_t)count);
    PyObject *bytes;

    if (length > PY_SSIZE_T_MAX)
        return PyErr_NoMemory();
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (bytes)
        jmk_frames_encode(PyBytes_AsString(bytes), items, (size_t)count, first_id);
    return bytes;
}
