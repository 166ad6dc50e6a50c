/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages as rows of an array: published from one, and received as one
 *
 * An array to publish is any buffer with two or more dimensions, or with one of items that are not
 * a byte each. Each array[i] is a message. Only the way from one to the next may be strided.
 */
#include "python/objects.h"

#include <string.h>

/* ---- from an array ---- */

/* Are these Python objects, or pointers of this process? Names of fields stand between colons. */
static bool has_pointers(const char *format) {
    bool in_name = false;

    for (; format && *format; format++) {
        if (*format == ':')
            in_name = !in_name;
        else if (in_name)
            continue;
        else if (strchr("OP&Xz", *format))
            return true;
        else if (*format == 'Z' && (!format[1] || !strchr("fdg", format[1]))) /* Zd: complex */
            return true;
    }
    return false;
}

/* numpy has no format for times. Without one its array is fine, if it says that it has no objects. */
static bool has_no_objects(PyObject *array) {
    PyObject *dtype = PyObject_GetAttrString(array, "dtype");
    PyObject *objects = dtype ? PyObject_GetAttrString(dtype, "hasobject") : NULL;
    bool none = objects == Py_False;

    Py_XDECREF(objects);
    Py_XDECREF(dtype);
    return none;
}

bool jmk_shows_pointers(PyObject *object) {
    PyObject *kind, *error, *trace;
    Py_buffer view;
    bool shows;

    if (PyBytes_CheckExact(object) || PyByteArray_CheckExact(object))
        return false;
    PyErr_Fetch(&kind, &error, &trace);
    if (PyObject_GetBuffer(object, &view, PyBUF_FULL_RO) == 0) {
        shows = has_pointers(view.format);
        PyBuffer_Release(&view);
    } else {
        PyErr_Clear();
        shows = PyObject_HasAttrString(object, "dtype") && !has_no_objects(object);
        PyErr_Clear();
    }
    PyErr_Restore(kind, error, trace);
    return shows;
}

static int get_array(PyObject *array, Py_buffer *view) {
    PyObject *kind, *error, *trace;

    if (PyObject_GetBuffer(array, view, PyBUF_FULL_RO) == 0)
        return 0;
    PyErr_Fetch(&kind, &error, &trace);
    if (has_no_objects(array) && PyObject_GetBuffer(array, view, PyBUF_STRIDED_RO) == 0) {
        Py_XDECREF(kind);
        Py_XDECREF(error);
        Py_XDECREF(trace);
        return 0;
    }
    PyErr_Restore(kind, error, trace);
    return -1;
}

static bool is_array(const Py_buffer *view) {
    bool records = view->format && strncmp(view->format, "T{", 2) == 0;

    return view->ndim >= 2 || (view->ndim == 1 && (view->itemsize != 1 || records));
}

static bool rows_are_contiguous(const Py_buffer *view) {
    Py_ssize_t due = view->itemsize;

    if (view->suboffsets) {
        for (int i = 0; i < view->ndim; i++) {
            if (view->suboffsets[i] >= 0)
                return false;
        }
    }
    for (int i = view->ndim - 1; i > 0 && view->strides; i--) {
        if (view->shape[i] > 1 && view->strides[i] != due)
            return false;
        due *= view->shape[i];
    }
    return true;
}

int jmk_gather_array(struct jmk_gathered *self, PyObject *array) {
    Py_buffer *view = PyMem_Calloc(1, sizeof *view);

    self->views = view;
    if (!view) {
        PyErr_NoMemory();
        return -1;
    }
    if (get_array(array, view) < 0)
        return -1;
    self->view_count = 1;
    if (!is_array(view)) {
        jmk_raise_made("no_sequence", PyTuple_Pack(1, array));
        return -1;
    }
    if (has_pointers(view->format) || !rows_are_contiguous(view)) {
        jmk_raise_made("no_rows", Py_BuildValue("Os", array,
                                                has_pointers(view->format) ? view->format : NULL));
        return -1;
    }
    self->count = view->shape[0];
    self->rows.rows = view->buf;
    self->rows.size = (size_t)view->itemsize;
    for (int i = 1; i < view->ndim; i++)
        self->rows.size *= (size_t)view->shape[i];
    self->rows.stride = view->strides ? view->strides[0] : (ptrdiff_t)self->rows.size;
    return 0;
}

/* ---- to rows ---- */

/* The first message that is not as large as the first of all, or count. */
static Py_ssize_t first_other(const struct jmk_slice *items, Py_ssize_t count) {
    size_t size = items[0].size, other = 0;
    Py_ssize_t i = 1;

    for (; i + 8 <= count; i += 8) {
        for (Py_ssize_t k = i; k < i + 8; k++)
            other |= items[k].size ^ size;
        if (other)
            break;
    }
    while (i < count && items[i].size == size)
        i++;
    return i;
}

bool jmk_are_rows(const struct jmk_slice *items, Py_ssize_t count) {
    return first_other(items, count) == count;
}

PyObject *jmk_row_size(const struct jmk_slice *items, Py_ssize_t count) {
    Py_ssize_t other = first_other(items, count);

    if (other == count)
        return Py_BuildValue("nOO", (Py_ssize_t)items[0].size, Py_None, Py_None);
    return Py_BuildValue("nnn", (Py_ssize_t)items[0].size, other, (Py_ssize_t)items[other].size);
}

PyObject *jmk_row_bytes(const struct jmk_slice *items, Py_ssize_t count) {
    size_t size = items[0].size;
    PyObject *rows;

    if (size && (size_t)count > PY_SSIZE_T_MAX / size)
        return PyErr_NoMemory();
    rows = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(size * (size_t)count));
    if (rows)
        jmk_rows_copy(PyByteArray_AsString(rows), items, (size_t)count);
    return rows;
}
