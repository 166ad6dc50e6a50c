/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The module `_objects`: loops between Python objects and C memory
 *
 * cffi makes an object for each item that it converts, so the loops over messages are written for
 * Python's C API instead, the limited one of 3.11. They know no policy. Handles come in from the cffi
 * side as addresses, together with the Python object that keeps them alive.
 *
 * The core is called directly, as this module is in the same shared library as cffi's `_core`: Python
 * lets one library have several modules (PEP 489), and src/jumiks/_objects.py loads this one.
 */
#include "python/objects.h"

/* ---- lists of what was received ---- */

static PyObject *message_list(PyObject *module, PyObject *args) {
    PyObject *address;
    Py_ssize_t count;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!n", &PyLong_Type, &address, &count))
        return NULL;
    return jmk_message_list(PyLong_AsVoidPtr(address), count);
}

static PyObject *view_list(PyObject *module, PyObject *args) {
    struct jmk_types *types = PyModule_GetState(module);
    PyObject *owner, *address;
    Py_ssize_t count;

    if (!PyArg_ParseTuple(args, "OO!n", &owner, &PyLong_Type, &address, &count))
        return NULL;
    return jmk_window_list(types->window, owner, PyLong_AsVoidPtr(address), count);
}

/* ---- frames ---- */

static PyObject *frame_bytes(PyObject *module, PyObject *args) {
    PyObject *address;
    Py_ssize_t count;
    unsigned long long first_id;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!nK", &PyLong_Type, &address, &count, &first_id))
        return NULL;
    return jmk_frame_bytes(PyLong_AsVoidPtr(address), count, first_id);
}

/* From the first frame's header to the end of the last one's padding. */
static PyObject *frame_view(PyObject *module, PyObject *args) {
    struct jmk_types *types = PyModule_GetState(module);
    const struct jmk_slice *items, *last;
    PyObject *owner, *address;
    const uint8_t *start;
    Py_ssize_t count;

    if (!PyArg_ParseTuple(args, "OO!n", &owner, &PyLong_Type, &address, &count))
        return NULL;
    items = PyLong_AsVoidPtr(address);
    last = &items[count - 1];
    start = (const uint8_t *)items->data - JMK_FRAME_HEADER;
    return jmk_window_view(types->window, owner, start,
                           (size_t)((const uint8_t *)last->data - start) +
                               (last->size + 7) / 8 * 8);
}

static PyObject *split_frames(PyObject *module, PyObject *args) {
    PyObject *packs;
    Py_buffer frames;
    unsigned long long first_id;
    Py_ssize_t limit;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*Kn", &frames, &first_id, &limit))
        return NULL;
    packs = jmk_split_frames(&frames, first_id, (size_t)limit);
    PyBuffer_Release(&frames);
    return packs;
}

/* ---- rows ---- */

static PyObject *row_size(PyObject *module, PyObject *args) {
    PyObject *address;
    Py_ssize_t count;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!n", &PyLong_Type, &address, &count))
        return NULL;
    return jmk_row_size(PyLong_AsVoidPtr(address), count);
}

static PyObject *row_bytes(PyObject *module, PyObject *args) {
    PyObject *address;
    Py_ssize_t count;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!n", &PyLong_Type, &address, &count))
        return NULL;
    return jmk_row_bytes(PyLong_AsVoidPtr(address), count);
}

static PyObject *row_view(PyObject *module, PyObject *args) {
    struct jmk_types *types = PyModule_GetState(module);
    PyObject *owner;
    Py_buffer frames;
    Py_ssize_t count, offset, size, stride;
    PyObject *view;

    if (!PyArg_ParseTuple(args, "Oy*nnnn", &owner, &frames, &offset, &count, &size, &stride))
        return NULL;
    view = jmk_window_rows(types->window, owner, (const char *)frames.buf + offset, count,
                           (size_t)size, (size_t)stride);
    PyBuffer_Release(&frames);
    return view;
}

/* ---- the module ---- */

static PyMethodDef functions[] = {
    {"gather", jmk_gather, METH_O, "gather(sequence): where the bytes of its items are."},
    {"gather_frames", jmk_gather_frames, METH_O,
     "gather_frames(buffer): where the messages in its frames are."},
    {"frame_bytes", frame_bytes, METH_VARARGS,
     "frame_bytes(address, count, first_id): frames of an array of struct jmk_slice, copied."},
    {"frame_view", frame_view, METH_VARARGS,
     "frame_view(owner, address, count): the frames that a batch of a shared log lies in."},
    {"split_frames", split_frames, METH_VARARGS,
     "split_frames(buffer, first_id, limit): frames cut into packs of at most limit bytes."},
    {"row_size", row_size, METH_VARARGS,
     "row_size(address, count): the size of the first, and index and size of one that differs."},
    {"row_bytes", row_bytes, METH_VARARGS,
     "row_bytes(address, count): messages of one size in a bytearray."},
    {"row_view", row_view, METH_VARARGS,
     "row_view(owner, buffer, offset, count, size, stride): rows in a buffer that owner keeps."},
    {"message_list", message_list, METH_VARARGS,
     "message_list(address, count): bytes objects of an array of struct jmk_slice."},
    {"view_list", view_list, METH_VARARGS,
     "view_list(owner, address, count): the same as read-only memoryviews, not copied."},
    {NULL, NULL, 0, NULL},
};

static int add_type(PyObject *module, PyType_Spec *spec, const char *name, PyTypeObject **keep) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);

    if (!type)
        return -1;
    if (PyModule_AddObjectRef(module, name, type) < 0) {
        Py_DECREF(type);
        return -1;
    }
    if (keep)
        *keep = (PyTypeObject *)type;
    else
        Py_DECREF(type);
    return 0;
}

static int fill_module(PyObject *module) {
    struct jmk_types *types = PyModule_GetState(module);

    if (add_type(module, &jmk_handout_type, "Handout", &types->handout) < 0 ||
        add_type(module, &jmk_messages_type, "Messages", NULL) < 0 ||
        add_type(module, &jmk_async_messages_type, "AsyncMessages", NULL) < 0 ||
        add_type(module, &jmk_next_message_type, "NextMessage", &types->next_message) < 0 ||
        add_type(module, &jmk_publisher_type, "Publisher", NULL) < 0 ||
        add_type(module, &jmk_publishing_type, "Publishing", NULL) < 0 ||
        add_type(module, &jmk_receiver_type, "Receiver", NULL) < 0 ||
        add_type(module, &jmk_gathered_type, "Gathered", &types->gathered) < 0 ||
        add_type(module, &jmk_window_type, "Window", &types->window) < 0 ||
        add_type(module, &jmk_reservation_type, "Reservation", &types->reservation) < 0)
        return -1;
    return 0;
}

static int traverse_module(PyObject *module, visitproc visit, void *arg) {
    struct jmk_types *types = PyModule_GetState(module);

    Py_VISIT((PyObject *)types->handout);
    Py_VISIT((PyObject *)types->window);
    Py_VISIT((PyObject *)types->gathered);
    Py_VISIT((PyObject *)types->next_message);
    Py_VISIT((PyObject *)types->reservation);
    return 0;
}

static int clear_module(PyObject *module) {
    struct jmk_types *types = PyModule_GetState(module);

    Py_CLEAR(types->handout);
    Py_CLEAR(types->window);
    Py_CLEAR(types->gathered);
    Py_CLEAR(types->next_message);
    Py_CLEAR(types->reservation);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, fill_module},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "jumiks._objects",
    .m_doc = "Loops between Python objects and C memory.",
    .m_size = sizeof(struct jmk_types),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = traverse_module,
    .m_clear = clear_module,
};

PyMODINIT_FUNC PyInit__objects(void);

PyMODINIT_FUNC PyInit__objects(void) {
    return PyModuleDef_Init(&module_definition);
}
