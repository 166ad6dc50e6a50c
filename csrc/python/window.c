/* SPDX-License-Identifier: Apache-2.0 */
/* Windows: C memory as a buffer that counts its exports. */
#include "python/objects.h"

#include <sys/mman.h>

PyObject *jmk_window_make(PyTypeObject *type, PyObject *owner, const void *memory, size_t size,
                          int readonly) {
    struct jmk_window *self = (struct jmk_window *)PyType_GenericAlloc(type, 0);

    if (!self)
        return NULL;
    self->owner = Py_NewRef(owner);
    self->memory = (void *)(uintptr_t)memory;
    self->size = (Py_ssize_t)size;
    self->readonly = readonly;
    return (PyObject *)self;
}

static PyObject *window_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *owner, *address;
    Py_ssize_t size;
    int readonly;

    (void)keywords;
    if (!PyArg_ParseTuple(args, "OO!np", &owner, &PyLong_Type, &address, &size, &readonly))
        return NULL;
    return jmk_window_make(type, owner, PyLong_AsVoidPtr(address), (size_t)size, readonly);
}

static void window_dealloc(PyObject *object) {
    struct jmk_window *self = (struct jmk_window *)object;
    PyTypeObject *type = Py_TYPE(object);

    if (self->area)
        munmap(self->area, self->area_length);
    Py_XDECREF(self->owner);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* Rows may be apart, so they are shown to those alone who ask for strides. A memoryview does. */
static bool takes_rows(int flags) {
    const int dense = PyBUF_C_CONTIGUOUS | PyBUF_F_CONTIGUOUS | PyBUF_ANY_CONTIGUOUS;

    return (flags & PyBUF_STRIDES) == PyBUF_STRIDES && !(flags & dense & ~PyBUF_STRIDES);
}

static int window_getbuffer(PyObject *object, Py_buffer *view, int flags) {
    struct jmk_window *self = (struct jmk_window *)object;
    bool rows = self->strides[0] != 0;

    if (rows && !takes_rows(flags)) {
        view->obj = NULL;
        PyErr_SetNone(PyExc_BufferError);
        return -1;
    }
    if (PyBuffer_FillInfo(view, object, self->memory, self->size, self->readonly, flags) < 0)
        return -1;
    if (rows) {
        view->ndim = 2;
        view->shape = self->shape;
        view->strides = self->strides;
    }
    JMK_ALONE(object);
    self->exports++;
    JMK_END_ALONE();
    return 0;
}

static void window_releasebuffer(PyObject *object, Py_buffer *view) {
    (void)view;
    JMK_ALONE(object);
    ((struct jmk_window *)object)->exports--;
    JMK_END_ALONE();
}

Py_ssize_t jmk_window_exports(struct jmk_window *self) {
    Py_ssize_t exports;

    JMK_ALONE(self);
    exports = self->exports;
    JMK_END_ALONE();
    return exports;
}

static PyObject *window_exports(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromSsize_t(jmk_window_exports((struct jmk_window *)object));
}

static PyGetSetDef window_getset[] = {
    {"exports", window_exports, NULL, "How many buffers are open on it.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot window_slots[] = {
    {Py_tp_new, window_new},
    {Py_tp_dealloc, window_dealloc},
    {Py_tp_getset, window_getset},
    {Py_bf_getbuffer, window_getbuffer},
    {Py_bf_releasebuffer, window_releasebuffer},
    {Py_tp_doc, "Window(owner, address, size, readonly): C memory that owner keeps alive."},
    {0, NULL},
};

PyType_Spec jmk_window_type = {
    .name = "jumiks._objects.Window",
    .basicsize = sizeof(struct jmk_window),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = window_slots,
};

/* ---- views ---- */

PyObject *jmk_window_view(PyTypeObject *type, PyObject *owner, const void *memory, size_t size) {
    PyObject *window = jmk_window_make(type, owner, memory, size, 1);
    PyObject *view;

    if (!window)
        return NULL;
    view = PyMemoryView_FromObject(window);
    Py_DECREF(window);
    return view;
}

PyObject *jmk_window_rows(PyTypeObject *type, PyObject *owner, const void *memory, Py_ssize_t count,
                          size_t size, size_t stride) {
    struct jmk_window *window =
        (struct jmk_window *)jmk_window_make(type, owner, memory, (size_t)count * size, 1);
    PyObject *view;

    if (!window)
        return NULL;
    window->shape[0] = count;
    window->shape[1] = (Py_ssize_t)size;
    window->strides[0] = (Py_ssize_t)stride;
    window->strides[1] = 1;
    view = PyMemoryView_FromObject((PyObject *)window);
    Py_DECREF(window);
    return view;
}

PyObject *jmk_window_list(PyTypeObject *type, PyObject *owner, const struct jmk_slice *items,
                          Py_ssize_t count) {
    PyObject *list = PyList_New(count);

    if (!list)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *view = jmk_window_view(type, owner, items[i].data, items[i].size);

        if (!view || PyList_SetItem(list, i, view) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}
