/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this folder share: the types they make, and how they read bytes. */
#ifndef JMK_OBJECTS_H
#define JMK_OBJECTS_H

#include <pyconfig.h>

#define PY_SSIZE_T_CLEAN
#if !defined Py_LIMITED_API && !defined Py_GIL_DISABLED
#define Py_LIMITED_API 0x030B0000 /* one wheel serves Python 3.11 and all later ones */
#endif
#include <Python.h>

#include <stdbool.h>

#include "jumiks.h"

/*
 * Between these two a thread has the object to itself, as far as it would by the GIL: another thread may
 * come wherever a GIL could be let go, and nowhere else. So what is safe with a GIL is safe without.
 * From where an inner one waits to its end, an outer one protects nothing; JMK_ALONE2 takes two objects
 * at once. No return, break or goto may leave them.
 */
#ifdef Py_GIL_DISABLED
#define JMK_ALONE(object) Py_BEGIN_CRITICAL_SECTION(object)
#define JMK_END_ALONE() Py_END_CRITICAL_SECTION()
#define JMK_ALONE2(one, other) Py_BEGIN_CRITICAL_SECTION2(one, other)
#define JMK_END_ALONE2() Py_END_CRITICAL_SECTION2()
#else
#define JMK_ALONE(object) {
#define JMK_END_ALONE() }
#define JMK_ALONE2(one, other) {
#define JMK_END_ALONE2() }
#endif

/* The module's types, one set per interpreter. */
struct jmk_types {
    PyTypeObject *handout;
    PyTypeObject *window;
    PyTypeObject *gathered;
    PyTypeObject *next_message;
    PyTypeObject *reservation;
};

extern PyType_Spec jmk_async_messages_type, jmk_next_message_type, jmk_handout_type,
    jmk_messages_type, jmk_receiver_type, jmk_publisher_type, jmk_publishing_type,
    jmk_reservation_type, jmk_gathered_type, jmk_window_type;

/* ---- messages.c ---- */

/*
 * The contiguous bytes of any object that has some. position is the item's place in a sequence, or
 * -1; it is named in the error. 0, or -1 with a Python error.
 */
int jmk_message_get(PyObject *object, Py_ssize_t position, Py_buffer *view);

/*
 * Is it what most calls give as a timeout: None, or 0 or more seconds? Whatever else there may be is
 * looked at in Python, which raises if it is none (_native.nanoseconds).
 */
bool jmk_is_timeout(PyObject *object);

/* Raise the exception that a function of errors.py makes: sentences are its business. */
void jmk_raise_made(const char *function, PyObject *args);

/* A list of bytes objects, copied. */
PyObject *jmk_message_list(const struct jmk_slice *items, Py_ssize_t count);

/* Where the bytes of messages are, which it keeps there. */
struct jmk_gathered {
    PyObject_HEAD
    PyObject *items; /* a tuple: nobody else can change it meanwhile. NULL: frames, or an array */
    struct jmk_slice *slices; /* NULL: rows, or no messages */
    struct jmk_messages rows; /* of an array, or of frames that have one size */
    bool are_frames;
    Py_ssize_t count;
    Py_buffer *views; /* of the items that are not bytes, of the frames, or of the array */
    Py_ssize_t view_count;
};

/* The same for the core. */
struct jmk_messages jmk_gathered_messages(const struct jmk_gathered *gathered);

/* gather(messages) of the module: a sequence of buffers, or an array. */
PyObject *jmk_gather(PyObject *module, PyObject *messages);

/* ---- receiver.c ---- */

/* What takes from a client's core. */
struct jmk_receiver {
    PyObject_HEAD
    PyObject *owner;
    jmk_client *client;
    struct jmk_batch batch; /* what was received last */
    bool busy;              /* a thread is filling or reading that, though others may run */
};

bool jmk_is_receiver(PyObject *object);

/*
 * Receive at most `most` messages (0: no limit), and wait for the first: nanoseconds, -1 is no limit. A
 * return code: JMK_E_BUSY if another thread does, or has not used yet what it got.
 */
int jmk_receiver_receive(struct jmk_receiver *receiver, uint64_t handled, int64_t timeout,
                         size_t most);

/* Take what is there, without a wait. */
int jmk_receiver_take(struct jmk_receiver *receiver, uint64_t handled, size_t most);

/*
 * The last batch as a list. NULL without a Python error: what was copied may be torn, so the batch was
 * given back.
 */
PyObject *jmk_receiver_copy(struct jmk_receiver *receiver);

/* Count the last batch as never received. */
void jmk_receiver_drop(struct jmk_receiver *receiver);

/* ---- handout.c ---- */

/*
 * The next message of a Handout, if it is here and no other task of the event loop has to run first. NULL
 * without an error: it is Python's.
 */
PyObject *jmk_handout_ready(PyObject *handout);

/* Ack what a loop has handled, if it is time. False with a Python error. */
bool jmk_handout_ack_in_time(PyObject *handout);

/* ---- frames.c ---- */

/* gather_frames(buffer) of the module: the messages in a buffer of frames, all of which are checked. */
PyObject *jmk_gather_frames(PyObject *module, PyObject *buffer);

/* Messages as frames, copied; the first has the id first_id. */
PyObject *jmk_frame_bytes(const struct jmk_slice *items, Py_ssize_t count, uint64_t first_id);

/*
 * Frames cut into packs of at most limit bytes; a frame that is larger is alone in its pack. A list of
 * (messages, offset of the end); or an int, the offset of what is no frame of the message that is due,
 * as ids rise by one from first_id.
 */
PyObject *jmk_split_frames(const Py_buffer *view, uint64_t first_id, size_t limit);

/* ---- arrays.c ---- */

/* Does it show Python objects, or pointers of this process, as bytes? */
bool jmk_shows_pointers(PyObject *object);

/* Fill an empty one from a buffer whose items are messages. 0, or -1 with a Python error. */
int jmk_gather_array(struct jmk_gathered *self, PyObject *array);

/* Have all messages one size? */
bool jmk_are_rows(const struct jmk_slice *items, Py_ssize_t count);

/* (size of the first, None, None) if all messages have one size, else (size, index of another, its size). */
PyObject *jmk_row_size(const struct jmk_slice *items, Py_ssize_t count);

/* Messages of one size as rows without gaps, copied into a bytearray. */
PyObject *jmk_row_bytes(const struct jmk_slice *items, Py_ssize_t count);

/* ---- window.c ---- */

/* C memory as a buffer that counts its exports. */
struct jmk_window {
    PyObject_HEAD
    PyObject *owner;
    void *memory;
    Py_ssize_t size;
    int readonly;
    Py_ssize_t shape[2], strides[2]; /* rows x bytes; strides of 0: it has one dimension */
    Py_ssize_t exports;
    void *area; /* what is its own, to be unmapped; or NULL */
    size_t area_length;
};

PyObject *jmk_window_make(PyTypeObject *type, PyObject *owner, const void *memory, size_t size,
                          int readonly);

/* How many buffers are open on it. */
Py_ssize_t jmk_window_exports(struct jmk_window *window);

/* A list of read-only memoryviews, not copied; owner keeps the memory alive. */
PyObject *jmk_window_list(PyTypeObject *type, PyObject *owner, const struct jmk_slice *items,
                          Py_ssize_t count);

/* One read-only memoryview of C memory, likewise. */
PyObject *jmk_window_view(PyTypeObject *type, PyObject *owner, const void *memory, size_t size);

/* The same of rows that are stride bytes apart; as long as that is more than 0. */
PyObject *jmk_window_rows(PyTypeObject *type, PyObject *owner, const void *memory, Py_ssize_t count,
                          size_t size, size_t stride);

#endif
