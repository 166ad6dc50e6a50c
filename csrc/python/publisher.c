/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publisher and Reservation: what takes the publisher's turn, and gives it back. Publishing: what Server
 * inherits
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

static int append_small(struct publisher *self, const void *data, Py_ssize_t size, uint64_t *id) {
    int result = jmk_server_append(self->server, data, (size_t)size, id);

    if (result == 0)
        jmk_server_kick(self->server);
    return result;
}

/* A return code, or -1 with a Python error in *failed. */
static int append(struct publisher *self, PyObject *data, uint64_t *id, bool *failed) {
    Py_buffer view;
    int result;

    *failed = jmk_message_get(data, -1, &view) < 0;
    if (*failed)
        return -1;
    result = view.len > LARGE ? append_large(self, &view, id)
                              : append_small(self, view.buf, view.len, id);
    PyBuffer_Release(&view);
    return result;
}

/* The id, or a return code, which is always below the first id. */
static PyObject *publisher_append(PyObject *object, PyObject *data) {
    uint64_t id = 0;
    bool failed;
    int result = append((struct publisher *)object, data, &id, &failed);

    if (failed)
        return NULL;
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
    if (!jmk_window_exports(window) || !self->size)
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

/* It is entered once; a try that took no turn does not count. */
static PyObject *enter(struct reservation *self) {
    struct jmk_types *types = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    struct publisher *publisher = self->publisher;
    struct jmk_account holder = {0};
    int64_t deadline;
    void *where;
    int result;

    if (self->entered)
        return fail_with(self, 0, NULL);
    self->entered = true; /* another thread may come while this one waits */
    deadline = jmk_deadline(self->timeout);
    do {
        Py_BEGIN_ALLOW_THREADS
        result = jmk_server_reserve_waiting(publisher->server, (size_t)self->size, &where, deadline,
                                            &holder);
        Py_END_ALLOW_THREADS
    } while (goes_on(result));
    self->entered = self->open = result == 0;
    if (result == -EINTR)
        return NULL;
    if (result != 0)
        return fail_with(self, result, &holder);
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

static PyObject *reservation_enter(PyObject *object, PyObject *unused) {
    PyObject *view;

    (void)unused;
    JMK_ALONE(object);
    view = enter((struct reservation *)object);
    JMK_END_ALONE();
    return view;
}

static PyObject *leave(struct reservation *self, bool publish) {
    int result;

    if (!self->open)
        return fail_with(self, 0, NULL);
    result = end_reservation(self, publish);
    if (result != 0 && publish)
        return fail_with(self, result, NULL);
    Py_RETURN_NONE;
}

static PyObject *reservation_exit(PyObject *object, PyObject *args) {
    PyObject *kind, *error, *trace, *done;

    if (!PyArg_ParseTuple(args, "OOO", &kind, &error, &trace))
        return NULL;
    JMK_ALONE(object);
    done = leave((struct reservation *)object, kind == Py_None);
    JMK_END_ALONE();
    return done;
}

static PyObject *reservation_packet_id(PyObject *object, void *closure) {
    uint64_t id;

    (void)closure;
    JMK_ALONE(object);
    id = ((struct reservation *)object)->id;
    JMK_END_ALONE();
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

/* ---- publishing ---- */

/* The part of Server that is in C: its publisher, and the call that takes no way through Python. */
struct publishing {
    PyObject_HEAD
    struct publisher *publisher; /* NULL: there is none yet, or any more */
};

static void publishing_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);

    Py_XDECREF((PyObject *)((struct publishing *)object)->publisher);
    free_object(object);
    Py_DECREF(type);
}

/* The server may be closed while it is used. NULL: there is none. */
static struct publisher *hold_publisher(PyObject *object) {
    PyObject *publisher;

    JMK_ALONE(object);
    publisher = Py_XNewRef((PyObject *)((struct publishing *)object)->publisher);
    JMK_END_ALONE();
    return (struct publisher *)publisher;
}

static PyObject *publishing_get(PyObject *object, void *closure) {
    PyObject *publisher = (PyObject *)hold_publisher(object);

    (void)closure;
    return publisher ? publisher : Py_NewRef(Py_None);
}

/* A subclass of ours has no module to ask for the type. */
static bool is_publisher(PyObject *object) {
    return PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) == (void *)publisher_dealloc;
}

static int publishing_set(PyObject *object, PyObject *value, void *closure) {
    struct publishing *self = (struct publishing *)object;
    PyObject *before;

    (void)closure;
    if (!value || (value != Py_None && !is_publisher(value))) {
        PyErr_SetString(PyExc_TypeError, "it is a Publisher or None");
        return -1;
    }
    JMK_ALONE(object);
    before = (PyObject *)self->publisher;
    self->publisher = value == Py_None ? NULL : (struct publisher *)Py_NewRef(value);
    JMK_END_ALONE();
    Py_XDECREF(before);
    return 0;
}

/* data and timeout of a call; a form that is not usual here is left to Python's own parser. */
static bool parse_call(PyObject *const *args, Py_ssize_t count, PyObject *names, PyObject **data,
                       PyObject **timeout) {
    static char *keywords[] = {"data", "timeout", NULL};
    Py_ssize_t named = names ? PyTuple_Size(names) : 0;
    PyObject *positional, *rest;
    bool parsed = false;

    *timeout = Py_None;
    if (count >= 1 && count + named <= 2 &&
        (!named || PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "timeout") == 0)) {
        *data = args[0];
        if (count + named == 2)
            *timeout = args[1];
        return true;
    }
    positional = PyTuple_New(count);
    rest = PyDict_New();
    for (Py_ssize_t i = 0; positional && i < count; i++)
        PyTuple_SetItem(positional, i, Py_NewRef(args[i]));
    for (Py_ssize_t i = 0; rest && i < named; i++)
        PyDict_SetItem(rest, PyTuple_GetItem(names, i), args[count + i]);
    if (positional && rest)
        parsed =
            PyArg_ParseTupleAndKeywords(positional, rest, "O|O:publish", keywords, data, timeout);
    Py_XDECREF(positional);
    Py_XDECREF(rest);
    return parsed; /* the caller's arguments live on */
}

static PyObject *publish(PyObject *object, PyObject *const *args, Py_ssize_t count,
                         PyObject *names) {
    struct publisher *publisher;
    PyObject *data, *timeout;
    bool failed = false;
    uint64_t id = 0;
    int result = 0; /* not tried yet */

    if (!parse_call(args, count, names, &data, &timeout))
        return NULL;
    publisher = jmk_is_timeout(timeout) ? hold_publisher(object) : NULL;
    if (publisher) {
        if (PyBytes_CheckExact(data) && PyBytes_Size(data) <= LARGE)
            result = append_small(publisher, PyBytes_AsString(data), PyBytes_Size(data), &id);
        else
            result = append(publisher, data, &id, &failed);
        Py_DECREF((PyObject *)publisher);
        if (failed)
            return NULL;
        if (id)
            return PyLong_FromUnsignedLongLong(id);
    }
    return PyObject_CallMethod(object, "_publish_slowly", "iOO", result, data, timeout);
}

static PyMethodDef publishing_methods[] = {
    {"publish", (PyCFunction)(void (*)(void))publish, METH_FASTCALL | METH_KEYWORDS,
     "publish($self, /, data, timeout=None)\n--\n\n"
     "Publish one message; returns its packet id.\n\n"
     "Args:\n"
     "    data: any contiguous buffer; copied before this returns.\n"
     "    timeout: seconds to wait, at most, where the lag policy or another publisher makes this\n"
     "        wait; None is no limit, 0 never waits.\n\n"
     "Raises:\n"
     "    TypeError, BufferError: `data` is no buffer, or not contiguous.\n"
     "    MessageTooLarge: it is larger than `max_message`.\n"
     "    Timeout: nothing was published; `holder` is the client that was waited for. Callbacks\n"
     "        run in the control thread, where this never waits and raises at once instead.\n"
     "    Busy: this thread has a `reserve` open.\n"
     "    Closed: the server is closed, perhaps while this waited.\n"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef publishing_getset[] = {
    {"_publisher", publishing_get, publishing_set, "What appends; None while it is not open.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot publishing_slots[] = {
    {Py_tp_dealloc, publishing_dealloc},
    {Py_tp_methods, publishing_methods},
    {Py_tp_getset, publishing_getset},
    {Py_tp_doc, "The part of Server that is in C."},
    {0, NULL},
};

PyType_Spec jmk_publishing_type = {
    .name = "jumiks._objects.Publishing",
    .basicsize = sizeof(struct publishing),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = publishing_slots,
};
