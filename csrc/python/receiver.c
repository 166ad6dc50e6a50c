/* SPDX-License-Identifier: Apache-2.0 */
/* Receiver: takes what has come to a client, as bytes or as addresses. */
#include "python/objects.h"

#include <errno.h>

static PyObject *receiver_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *owner, *client;
    struct jmk_receiver *self;

    (void)keywords;
    if (!PyArg_ParseTuple(args, "OO!", &owner, &PyLong_Type, &client))
        return NULL;
    self = (struct jmk_receiver *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->owner = Py_NewRef(owner);
    self->client = PyLong_AsVoidPtr(client);
    return (PyObject *)self;
}

static void receiver_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);

    Py_XDECREF(((struct jmk_receiver *)object)->owner);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* What keeps a call out while another thread is in: it may be forked, or closed, too. */
static int busy_code(const struct jmk_receiver *self) {
    int error = jmk_client_ack(self->client, UINT64_MAX, 0); /* no message has that id */

    return error == JMK_E_ACK ? JMK_E_BUSY : error;
}

int jmk_receiver_receive(struct jmk_receiver *self, uint64_t handled, int64_t timeout,
                         size_t most) {
    int result;

    if (self->busy)
        return busy_code(self);
    self->busy = true;
    Py_BEGIN_ALLOW_THREADS
    result = jmk_client_receive_some(self->client, handled, timeout, most, &self->batch);
    Py_END_ALLOW_THREADS
    self->busy = false;
    return result;
}

int jmk_receiver_take(struct jmk_receiver *self, uint64_t handled, size_t most) {
    return self->busy ? busy_code(self)
                      : jmk_client_take(self->client, handled, most, &self->batch);
}

/*
 * Receive, unless the last batch lies behind handled: then a signal's exception kept its caller from
 * taking it, and it is still there. *size is the third argument, unless size is NULL. A return code, or -1
 * with a Python error in *failed.
 */
static int receive_batch(struct jmk_receiver *self, PyObject *args, Py_ssize_t *size, int *failed) {
    unsigned long long handled;
    long long timeout;

    *failed = !(size ? PyArg_ParseTuple(args, "KLn", &handled, &timeout, size)
                     : PyArg_ParseTuple(args, "KL", &handled, &timeout));
    if (*failed)
        return -1;
    if (!self->busy && self->batch.count && self->batch.first_id > handled)
        return 0;
    return jmk_receiver_receive(self, handled, timeout, 0);
}

bool jmk_is_receiver(PyObject *object) {
    return PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) == (void *)receiver_dealloc;
}

void jmk_receiver_drop(struct jmk_receiver *self) {
    jmk_client_drop_batch(self->client);
    self->batch.count = 0;
}

PyObject *jmk_receiver_copy(struct jmk_receiver *self) {
    PyObject *list;

    self->busy = true; /* making objects may run destructors, which may run anything */
    list = jmk_message_list(self->batch.items, (Py_ssize_t)self->batch.count);
    self->busy = false;
    if (!list || jmk_client_batch_is_intact(self->client))
        return list;
    Py_DECREF(list);
    jmk_receiver_drop(self);
    return NULL;
}

static PyObject *list_batch(struct jmk_receiver *self, PyObject *args) {
    int failed, result = receive_batch(self, args, NULL, &failed);
    PyObject *list;

    if (failed)
        return NULL;
    if (result != 0)
        return PyLong_FromLong(result);
    list = jmk_receiver_copy(self);
    if (!list) /* torn: a server that goes on like that must not keep us from the clock */
        return PyErr_Occurred() ? NULL : PyLong_FromLong(-EINTR);
    return Py_BuildValue("KKKNK", (unsigned long long)self->batch.first_id,
                         (unsigned long long)(self->batch.first_id + self->batch.count - 1),
                         (unsigned long long)self->batch.lost, list,
                         (unsigned long long)self->batch.shift);
}

/* The rows of a batch in which all messages have that size, or None; NULL with or without a Python error. */
static PyObject *copy_rows(struct jmk_receiver *self, Py_ssize_t size) {
    const struct jmk_slice *items = self->batch.items;
    Py_ssize_t count = (Py_ssize_t)self->batch.count;
    PyObject *rows;

    if (items[0].size != (size_t)size || !jmk_are_rows(items, count))
        return Py_NewRef(Py_None);
    rows = jmk_row_bytes(items, count);
    if (!rows || jmk_client_batch_is_intact(self->client))
        return rows;
    Py_DECREF(rows);
    jmk_receiver_drop(self);
    return NULL;
}

static PyObject *row_batch(struct jmk_receiver *self, PyObject *args) {
    Py_ssize_t size = 0;
    int failed, result = receive_batch(self, args, &size, &failed);
    PyObject *rows;

    if (failed)
        return NULL;
    if (result != 0)
        return PyLong_FromLong(result);
    rows = copy_rows(self, size);
    if (!rows)
        return PyErr_Occurred() ? NULL : PyLong_FromLong(-EINTR);
    return Py_BuildValue("KKnN", (unsigned long long)self->batch.first_id,
                         (unsigned long long)self->batch.lost, (Py_ssize_t)self->batch.count, rows);
}

static PyObject *slice_batch(struct jmk_receiver *self, PyObject *args) {
    int failed, result = receive_batch(self, args, NULL, &failed);

    if (failed)
        return NULL;
    if (result != 0)
        return PyLong_FromLong(result);
    return Py_BuildValue("KKKnN", (unsigned long long)self->batch.first_id,
                         (unsigned long long)self->batch.lost,
                         (unsigned long long)self->batch.shift, (Py_ssize_t)self->batch.count,
                         PyLong_FromVoidPtr((void *)(uintptr_t)self->batch.items));
}

/* Receive in one of these three ways. */
static PyObject *receive_alone(PyObject *object, PyObject *args,
                               PyObject *(*way)(struct jmk_receiver *, PyObject *)) {
    PyObject *found;

    JMK_ALONE(object);
    found = way((struct jmk_receiver *)object, args);
    JMK_END_ALONE();
    return found;
}

static PyObject *receive_list(PyObject *object, PyObject *args) {
    return receive_alone(object, args, list_batch);
}

static PyObject *receive_rows(PyObject *object, PyObject *args) {
    return receive_alone(object, args, row_batch);
}

static PyObject *receive_slices(PyObject *object, PyObject *args) {
    return receive_alone(object, args, slice_batch);
}

static PyObject *has_batch(PyObject *object, PyObject *handled) {
    const struct jmk_batch *batch = &((struct jmk_receiver *)object)->batch;
    unsigned long long id = PyLong_AsUnsignedLongLong(handled);
    bool has;

    if (PyErr_Occurred())
        return NULL;
    JMK_ALONE(object);
    has = batch->count && batch->first_id > id;
    JMK_END_ALONE();
    return PyBool_FromLong(has);
}

static PyObject *receiver_drop(PyObject *object, PyObject *unused) {
    (void)unused;
    JMK_ALONE(object);
    jmk_receiver_drop((struct jmk_receiver *)object);
    JMK_END_ALONE();
    Py_RETURN_NONE;
}

static PyMethodDef receiver_methods[] = {
    {"drop", receiver_drop, METH_NOARGS, "Count the last batch as never received."},
    {"has_batch", has_batch, METH_O,
     "has_batch(handled): whether the last batch lies behind that, so that it comes again."},
    {"receive_list", receive_list, METH_VARARGS,
     "receive_list(handled, timeout): (first id, last id, lost, list of bytes, shift), or a return "
     "code."},
    {"receive_slices", receive_slices, METH_VARARGS,
     "receive_slices(handled, timeout): (first id, lost, shift, count, address), or a return "
     "code."},
    {"receive_rows", receive_rows, METH_VARARGS,
     "receive_rows(handled, timeout, size): (first id, lost, count, bytearray of all, or None if "
     "some have another size), or a return code."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot receiver_slots[] = {
    {Py_tp_new, receiver_new},
    {Py_tp_dealloc, receiver_dealloc},
    {Py_tp_methods, receiver_methods},
    {Py_tp_doc, "Receiver(owner, client): the handle, and its address as an integer."},
    {0, NULL},
};

PyType_Spec jmk_receiver_type = {
    .name = "jumiks._objects.Receiver",
    .basicsize = sizeof(struct jmk_receiver),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = receiver_slots,
};
