/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages as Python objects: their bytes, lists of them, and where the bytes of many lie
 *
 * The sentences of errors are made in Python (src/jumiks/errors.py).
 */
#include "python/objects.h"

/* Is it a buffer, but not in one piece? Each exporter has an error of its own for that. */
static bool is_strided(PyObject *object) {
    PyObject *kind, *error, *trace;
    bool strided = false;
    Py_buffer view;

    PyErr_Fetch(&kind, &error, &trace);
    if (PyObject_GetBuffer(object, &view, PyBUF_FULL_RO) == 0) {
        strided = !PyBuffer_IsContiguous(&view, 'C');
        PyBuffer_Release(&view);
    }
    PyErr_Restore(kind, error, trace);
    return strided;
}

bool jmk_is_timeout(PyObject *object) {
    int overflow = 0;

    if (object == Py_None)
        return true;
    if (PyFloat_Check(object))
        return PyFloat_AsDouble(object) >= 0;
    return PyLong_CheckExact(object) && PyLong_AsLongAndOverflow(object, &overflow) >= 0 &&
           !overflow;
}

void jmk_raise_made(const char *function, PyObject *args) {
    PyObject *errors = args ? PyImport_ImportModule("jumiks.errors") : NULL;
    PyObject *make = errors ? PyObject_GetAttrString(errors, function) : NULL;
    PyObject *error = make ? PyObject_CallObject(make, args) : NULL;

    if (error)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    Py_XDECREF(make);
    Py_XDECREF(errors);
    Py_XDECREF(args);
}

int jmk_message_get(PyObject *object, Py_ssize_t position, Py_buffer *view) {
    bool scattered;

    if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE) == 0) {
        if (!jmk_shows_pointers(object))
            return 0;
        PyBuffer_Release(view);
        jmk_raise_made("no_bytes", Py_BuildValue("On", object, position));
        return -1;
    }
    scattered = PyErr_ExceptionMatches(PyExc_BufferError) || is_strided(object);
    if (scattered || PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        jmk_raise_made("no_message",
                       Py_BuildValue("OnO", object, position, scattered ? Py_True : Py_False));
    }
    return -1;
}

PyObject *jmk_message_list(const struct jmk_slice *items, Py_ssize_t count) {
    PyObject *list = PyList_New(count);

    if (!list)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *message = PyBytes_FromStringAndSize(items[i].data, (Py_ssize_t)items[i].size);

        if (!message || PyList_SetItem(list, i, message) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

/* ---- Gathered: where the bytes of messages are ---- */

static void gathered_dealloc(PyObject *object) {
    struct jmk_gathered *self = (struct jmk_gathered *)object;
    PyTypeObject *type = Py_TYPE(object);

    for (Py_ssize_t i = 0; i < self->view_count; i++)
        PyBuffer_Release(&self->views[i]);
    PyMem_Free(self->views);
    PyMem_Free(self->slices);
    Py_XDECREF(self->items);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* An item that is not bytes: hold its buffer open. */
static int gather_buffer(struct jmk_gathered *self, PyObject *item, Py_ssize_t at,
                         Py_ssize_t count) {
    Py_buffer *view;

    if (!self->views) {
        self->views = PyMem_Calloc((size_t)count, sizeof *self->views);
        if (!self->views) {
            PyErr_NoMemory();
            return -1;
        }
    }
    view = &self->views[self->view_count];
    if (jmk_message_get(item, at, view) < 0)
        return -1;
    self->view_count++;
    self->slices[at] = (struct jmk_slice){view->buf, (size_t)view->len};
    return 0;
}

static int gather_items(struct jmk_gathered *self) {
    Py_ssize_t count = self->count;

    self->slices = PyMem_Malloc((size_t)(count ? count : 1) * sizeof *self->slices);
    if (!self->slices) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(self->items, i);

        if (PyBytes_CheckExact(item))
            self->slices[i] =
                (struct jmk_slice){PyBytes_AsString(item), (size_t)PyBytes_Size(item)};
        else if (gather_buffer(self, item, i, count) < 0)
            return -1;
    }
    return 0;
}

/* What can be iterated, and is hardly meant: characters, or the keys of a mapping. The limited API
 * has the flag by its number alone (PEP 634). */
static bool is_no_sequence(PyObject *object) {
    const unsigned long mapping = 1UL << 6; /* Py_TPFLAGS_MAPPING */

    return PyUnicode_Check(object) || PyType_GetFlags(Py_TYPE(object)) & mapping;
}

/* A tuple of them. An iterable may fail by itself, with whatever it raises. */
static PyObject *items_of(PyObject *sequence) {
    PyObject *kind, *error, *trace, *iterator;
    bool wrong = is_no_sequence(sequence);
    PyObject *items = wrong ? NULL : PySequence_Tuple(sequence);

    if (items)
        return items;
    PyErr_Fetch(&kind, &error, &trace);
    iterator = wrong ? NULL : PyObject_GetIter(sequence);
    if (iterator) {
        PyErr_Restore(kind, error, trace);
        Py_DECREF(iterator);
        return NULL;
    }
    PyErr_Clear();
    Py_XDECREF(kind);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    jmk_raise_made("no_sequence", PyTuple_Pack(1, sequence));
    return NULL;
}

static int gather_sequence(struct jmk_gathered *self, PyObject *sequence) {
    self->items = items_of(sequence);
    if (!self->items)
        return -1;
    self->count = PyTuple_Size(self->items);
    return gather_items(self);
}

PyObject *jmk_gather(PyObject *module, PyObject *messages) {
    struct jmk_types *types = PyModule_GetState(module);
    struct jmk_gathered *self = (struct jmk_gathered *)PyType_GenericAlloc(types->gathered, 0);
    int failed;

    if (!self)
        return NULL;
    failed = PyObject_CheckBuffer(messages) ? jmk_gather_array(self, messages)
                                            : gather_sequence(self, messages);
    if (failed)
        Py_CLEAR(self);
    return (PyObject *)self;
}

struct jmk_messages jmk_gathered_messages(const struct jmk_gathered *gathered) {
    struct jmk_messages messages = gathered->rows;

    messages.slices = gathered->slices;
    messages.count = (size_t)gathered->count;
    return messages;
}

static PyObject *gathered_size_of(PyObject *object, PyObject *index) {
    struct jmk_gathered *self = (struct jmk_gathered *)object;
    Py_ssize_t at = PyLong_AsSsize_t(index);

    if (at < 0 || at >= self->count) {
        if (!PyErr_Occurred())
            PyErr_SetNone(PyExc_IndexError);
        return NULL;
    }
    return PyLong_FromSize_t(self->slices ? self->slices[at].size : self->rows.size);
}

static PyObject *gathered_frames(PyObject *object, PyObject *first_id) {
    struct jmk_gathered *self = (struct jmk_gathered *)object;
    unsigned long long first = PyLong_AsUnsignedLongLong(first_id);

    return PyErr_Occurred() ? NULL : jmk_frame_bytes(self->slices, self->count, first);
}

static PyObject *gathered_row_size(PyObject *object, void *closure) {
    struct jmk_gathered *self = (struct jmk_gathered *)object;

    (void)closure;
    return jmk_row_size(self->slices, self->count);
}

static PyObject *gathered_row_bytes(PyObject *object, PyObject *unused) {
    struct jmk_gathered *self = (struct jmk_gathered *)object;

    (void)unused;
    return jmk_row_bytes(self->slices, self->count);
}

/* The largest message, and where its frame begins, if these are frames. */
static PyObject *gathered_largest(PyObject *object, void *closure) {
    struct jmk_gathered *self = (struct jmk_gathered *)object;
    struct jmk_slice largest = {self->rows.rows, self->rows.size};

    (void)closure;
    for (Py_ssize_t i = 0; self->slices && i < self->count; i++)
        largest = i == 0 || self->slices[i].size > largest.size ? self->slices[i] : largest;
    if (!self->are_frames)
        return Py_BuildValue("nO", (Py_ssize_t)largest.size, Py_None);
    return Py_BuildValue("nn", (Py_ssize_t)largest.size,
                         (Py_ssize_t)((const char *)largest.data - (const char *)self->views->buf) -
                             JMK_FRAME_HEADER);
}

static PyObject *gathered_count(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromSsize_t(((struct jmk_gathered *)object)->count);
}

static PyGetSetDef gathered_getset[] = {
    {"count", gathered_count, NULL, "How many messages.", NULL},
    {"row_size", gathered_row_size, NULL, "As row_size() of the module, of a sequence.", NULL},
    {"largest", gathered_largest, NULL,
     "The size of the largest, if there are any, and where its frame begins, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef gathered_methods[] = {
    {"size_of", gathered_size_of, METH_O, "size_of(index): the bytes of one."},
    {"row_bytes", gathered_row_bytes, METH_NOARGS, "As row_bytes() of the module, of a sequence."},
    {"frames", gathered_frames, METH_O, "frames(first_id): all of them as frames, copied."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot gathered_slots[] = {
    {Py_tp_dealloc, gathered_dealloc},
    {Py_tp_getset, gathered_getset},
    {Py_tp_methods, gathered_methods},
    {Py_tp_doc, "Where the bytes of messages are: of a sequence, of an array, or of frames."},
    {0, NULL},
};

PyType_Spec jmk_gathered_type = {
    .name = "jumiks._objects.Gathered",
    .basicsize = sizeof(struct jmk_gathered),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = gathered_slots,
};
