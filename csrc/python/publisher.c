/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publisher and Reservation: what takes the publisher's turn, and gives it back
 *
 * Waits release the GIL. Signals are handled only where an exception cannot leak the turn.
 */
#include "python/objects.h"

#include <errno.h>

/* Above this a copy is worth letting other Python threads run. */
#define LARGE 16384

struct publisher {
    PyObject_HEAD
    PyObject *owner;
    jmk_server *server;
};

static PyObject *publisher_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *owner, *server;
    struct publisher *self;

    (void)keywords;
    if (!PyArg_ParseTuple(args, "OO!", &owner, &PyLong_Type, &server))
        return NULL;
    self = (struct publisher *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->owner = Py_NewRef(owner);
    self->server = PyLong_AsVoidPtr(server);
    return (PyObject *)self;
}

static void publisher_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);

    Py_XDECREF(((struct publisher *)object)->owner);
    PyObject_Free(object);
    Py_DECREF(type);
}

static int append_large(struct publisher *self, const Py_buffer *view, uint64_t *id) {
    int result;

    Py_BEGIN_ALLOW_THREADS
    result = jmk_server_append(self->server, view->buf, (size_t)view->len, id);
    if (result == 0)
        jmk_server_kick(self->server);
    Py_END_ALLOW_THREADS
    return result;
}

/* The id, or a return code, which is always below the first id. */
static PyObject *publisher_append(PyObject *object, PyObject *data) {
    struct publisher *self = (struct publisher *)object;
    Py_buffer view;
    uint64_t id = 0;
    int result;

    if (jmk_message_get(data, -1, &view) < 0)
        return NULL;
    if (view.len > LARGE) {
        result = append_large(self, &view, &id);
    } else {
        result = jmk_server_append(self->server, view.buf, (size_t)view.len, &id);
        if (result == 0)
            jmk_server_kick(self->server);
    }
    PyBuffer_Release(&view);
    return result == 0 ? PyLong_FromUnsignedLongLong(id) : PyLong_FromLong(result);
}

/* Should a wait that gave result go on? Signal handlers run here, where the turn cannot be lost. */
static bool goes_on(int result) {
    return result == -EINTR && PyErr_CheckSignals() == 0;
}

static PyObject *publisher_append_many(PyObject *object, PyObject *args) {
    struct jmk_types *types = PyType_GetModuleState(Py_TYPE(object));
    struct publisher *self = (struct publisher *)object;
    struct jmk_gathered *found;
    struct jmk_account holder = {0};
    Py_ssize_t done;
    uint64_t first = 0;
    long long timeout;
    struct jmk_messages messages;
    int64_t deadline;
    int result;

    if (!PyArg_ParseTuple(args, "O!nL", types->gathered, &found, &done, &timeout))
        return NULL;
    deadline = jmk_deadline(timeout);
    messages = jmk_gathered_messages(found);
    do {
        Py_BEGIN_ALLOW_THREADS
        result = jmk_server_publish_many(self->server, &messages, (size_t *)&done, &first, deadline,
                                         &holder);
        if (result != 0 && result != -EINTR)
            jmk_server_yield(self->server);
        Py_END_ALLOW_THREADS
    } while (goes_on(result));
    if (result == -EINTR) {
        jmk_server_yield(self->server);
        return NULL;
    }
    return Py_BuildValue("inKy#", result, done, (unsigned long long)first, (const char *)&holder,
                         (Py_ssize_t)sizeof holder);
}

static PyObject *publisher_reserve(PyObject *object, PyObject *args);

static PyMethodDef publisher_methods[] = {
    {"append", publisher_append, METH_O, "Append one message: its id, or a return code."},
    {"append_many", publisher_append_many, METH_VARARGS,
     "append_many(gathered, done, timeout): (return code, done, first id, holder's account)."},
    {"reserve", publisher_reserve, METH_VARARGS,
     "reserve(size, timeout, fail): a Reservation; fail(return code, holder's account) raises."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot publisher_slots[] = {
    {Py_tp_new, publisher_new},
    {Py_tp_dealloc, publisher_dealloc},
    {Py_tp_methods, publisher_methods},
    {Py_tp_doc, "Publisher(owner, server): the handle, and its address as an integer."},
    {0, NULL},
};

PyType_Spec jmk_publisher_type = {
    .name = "jumiks._objects.Publisher",
    .basicsize = sizeof(struct publisher),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = publisher_slots,
};

/* ---- Reservation: a message that is written in place ---- */

/*
 * No bytecode stands between taking the turn and what gives it back, so no signal's exception can come
 * there: `with` calls both in C, and a reservation that is lost inside gives the turn back as it goes.
 */
struct reservation {
    PyObject_HEAD
    struct publisher *publisher;
    PyObject *fail;
    Py_ssize_t size;
    long long timeout;
    bool entered, open;
    uint64_t id;
    struct jmk_window *window;
    PyObject *view;
};

static PyObject *publisher_reserve(PyObject *object, PyObject *args) {
    struct jmk_types *types = PyType_GetModuleState(Py_TYPE(object));
    struct reservation *self;
    Py_ssize_t size;
    long long timeout;
    PyObject *fail;

    if (!PyArg_ParseTuple(args, "nLO", &size, &timeout, &fail))
        return NULL;
    self = (struct reservation *)PyType_GenericAlloc(types->reservation, 0);
    if (!self)
        return NULL;
    self->publisher = (struct publisher *)Py_NewRef(object);
    self->fail = Py_NewRef(fail);
    self->size = size;
    self->timeout = timeout;
    return (PyObject *)self;
}

/* A view that is still in use keeps the bytes that are there, and cannot reach the log any more. */
static int take_back(struct reservation *self) {
    struct jmk_window *window = self->window;
    PyObject *done = PyObject_CallMethod(self->view, "release", NULL);
    int result;

    if (!done)
        PyErr_Clear(); /* it is in use: that counts as an export */
    Py_XDECREF(done);
    if (!window->exports || !self->size)
        return 0;
    result = jmk_server_take_back(self->publisher->server, window->memory, (size_t)self->size,
                                  &window->area, &window->area_length);
    if (result == 0)
        Py_CLEAR(window->owner);
    return result;
}

/* End it: commit it, or discard it. A return code. What it held of the server is let go. */
static int end_reservation(struct reservation *self, bool publish) {
    jmk_server *server = self->publisher->server;
    int result;

    self->open = false;
    result = self->window ? take_back(self) : 0;
    if (!publish || result != 0)
        jmk_server_discard(server);
    else
        result = jmk_server_commit(server, &self->id);
    if (publish && result == 0)
        jmk_server_kick(server);
    Py_CLEAR(self->view);
    Py_CLEAR(self->window);
    Py_CLEAR(self->publisher);
    return result;
}

static void reservation_dealloc(PyObject *object) {
    struct reservation *self = (struct reservation *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject *kind, *error, *trace;

    PyErr_Fetch(&kind, &error, &trace);
    if (self->open)
        end_reservation(self, false);
    PyErr_Restore(kind, error, trace);
    Py_XDECREF((PyObject *)self->publisher); /* of one that was never entered */
    Py_XDECREF(self->fail);
    PyObject_Free(object);
    Py_DECREF(type);
}

static PyObject *fail_with(struct reservation *self, int result, const struct jmk_account *holder) {
    return PyObject_CallFunction(self->fail, "iy#", result, (const char *)holder,
                                 holder ? (Py_ssize_t)sizeof *holder : (Py_ssize_t)0);
}

static PyObject *reservation_enter(PyObject *object, PyObject *unused) {
    struct reservation *self = (struct reservation *)object;
    struct jmk_types *types = PyType_GetModuleState(Py_TYPE(object));
    struct publisher *publisher = self->publisher;
    struct jmk_account holder = {0};
    int64_t deadline;
    void *where;
    int result;

    (void)unused;
    if (self->entered)
        return fail_with(self, 0, NULL);
    deadline = jmk_deadline(self->timeout);
    do {
        Py_BEGIN_ALLOW_THREADS
        result = jmk_server_reserve_waiting(publisher->server, (size_t)self->size, &where, deadline,
                                            &holder);
        Py_END_ALLOW_THREADS
    } while (goes_on(result));
    if (result == -EINTR)
        return NULL;
    if (result != 0)
        return fail_with(self, result, &holder);
    self->entered = self->open = true;
    self->window = (struct jmk_window *)jmk_window_make(types->window, publisher->owner, where,
                                                        (size_t)self->size, 0);
    self->view = self->window ? PyMemoryView_FromObject((PyObject *)self->window) : NULL;
    if (!self->view) {
        PyObject *kind, *error, *trace;

        PyErr_Fetch(&kind, &error, &trace);
        Py_CLEAR(self->window);
        end_reservation(self, false);
        PyErr_Restore(kind, error, trace);
        return NULL;
    }
    return Py_NewRef(self->view);
}

static PyObject *reservation_exit(PyObject *object, PyObject *args) {
    struct reservation *self = (struct reservation *)object;
    PyObject *kind, *error, *trace;
    int result;

    if (!PyArg_ParseTuple(args, "OOO", &kind, &error, &trace))
        return NULL;
    if (!self->open)
        return fail_with(self, 0, NULL);
    result = end_reservation(self, kind == Py_None);
    if (result != 0 && kind == Py_None)
        return fail_with(self, result, NULL);
    Py_RETURN_NONE;
}

static PyObject *reservation_packet_id(PyObject *object, void *closure) {
    uint64_t id = ((struct reservation *)object)->id;

    (void)closure;
    if (!id)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(id);
}

static PyMethodDef reservation_methods[] = {
    {"__enter__", reservation_enter, METH_NOARGS, "Wait for room; the message's bytes."},
    {"__exit__", reservation_exit, METH_VARARGS, "Publish it, or after an exception discard it."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef reservation_getset[] = {
    {"packet_id", reservation_packet_id, NULL,
     "The id of the message, once it is published; None before.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot reservation_slots[] = {
    {Py_tp_dealloc, reservation_dealloc},
    {Py_tp_methods, reservation_methods},
    {Py_tp_getset, reservation_getset},
    {Py_tp_doc, "What Server.reserve returns; a context manager, to be entered once."},
    {0, NULL},
};

PyType_Spec jmk_reservation_type = {
    .name = "jumiks._objects.Reservation",
    .basicsize = sizeof(struct reservation),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = reservation_slots,
};
