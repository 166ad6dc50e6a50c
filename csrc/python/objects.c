/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loops that make Python objects of bytes, and the other way round
 *
 * The only file that includes Python.h. It knows no policy and links nothing of the core: addresses
 * of C memory and functions come in as integers from the cffi side, together with the Python object
 * that keeps them alive. Limited API, 3.11 and later.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "jumiks.h"

/* Above this a copy is worth letting other Python threads run. */
#define LARGE 16384

struct state {
    PyTypeObject *window;
    PyTypeObject *gathered;
    PyTypeObject *reservation;
};

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

/* Raise the exception that a function of errors.py makes: sentences are its business. */
static void raise_made(const char *function, PyObject *args) {
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

/*
 * The contiguous bytes of any object that has some. position is the item's place in a sequence, or
 * -1; it is named in the error.
 */
static int get_bytes(PyObject *object, Py_ssize_t position, Py_buffer *view) {
    bool scattered;

    if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE) == 0)
        return 0;
    scattered = PyErr_ExceptionMatches(PyExc_BufferError) || is_strided(object);
    if (scattered || PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        raise_made("no_message",
                   Py_BuildValue("OnO", object, position, scattered ? Py_True : Py_False));
    }
    return -1;
}

static void *pointer_from(PyObject *number) {
    return PyLong_AsVoidPtr(number);
}

static PyObject *list_of(const struct jmk_slice *items, Py_ssize_t count) {
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

/* ---- Receiver: take what has come, as bytes ---- */

struct receiver {
    PyObject_HEAD
    PyObject *owner;
    jmk_client *client;
    int (*receive)(jmk_client *, uint64_t, int64_t, struct jmk_batch *);
    int (*whole)(const jmk_client *);
    void (*unread)(jmk_client *);
    struct jmk_batch batch; /* what was received last */
};

static PyObject *receiver_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *owner, *client, *receive, *whole, *unread;
    struct receiver *self;

    (void)keywords;
    if (!PyArg_ParseTuple(args, "OO!O!O!O!", &owner, &PyLong_Type, &client, &PyLong_Type, &receive,
                          &PyLong_Type, &whole, &PyLong_Type, &unread))
        return NULL;
    self = (struct receiver *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->owner = Py_NewRef(owner);
    self->client = pointer_from(client);
    *(void **)&self->receive = pointer_from(receive);
    *(void **)&self->whole = pointer_from(whole);
    *(void **)&self->unread = pointer_from(unread);
    return (PyObject *)self;
}

static void receiver_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);

    Py_XDECREF(((struct receiver *)object)->owner);
    PyObject_Free(object);
    Py_DECREF(type);
}

/*
 * Receive, unless the last batch lies behind handled: then a signal's exception kept its caller from
 * taking it, and it is still there. A return code, or -1 with a Python error in *failed.
 */
static int receiver_fill(struct receiver *self, PyObject *args, int *failed) {
    unsigned long long handled;
    long long timeout;
    int result;

    *failed = !PyArg_ParseTuple(args, "KL", &handled, &timeout);
    if (*failed)
        return -1;
    if (self->batch.count && self->batch.first_id > handled)
        return 0;
    Py_BEGIN_ALLOW_THREADS
    result = self->receive(self->client, handled, timeout, &self->batch);
    Py_END_ALLOW_THREADS
    return result;
}

/*
 * The batch as a list. NULL without a Python error: what was copied may be torn, so the batch was
 * given back.
 */
static PyObject *receiver_list(struct receiver *self) {
    PyObject *list = list_of(self->batch.items, (Py_ssize_t)self->batch.count);

    if (!list || self->whole(self->client))
        return list;
    Py_DECREF(list);
    self->unread(self->client);
    self->batch.count = 0;
    return NULL;
}

static PyObject *receiver_take(PyObject *object, PyObject *args) {
    struct receiver *self = (struct receiver *)object;
    int failed, result = receiver_fill(self, args, &failed);
    PyObject *list;

    if (failed)
        return NULL;
    if (result != 0)
        return PyLong_FromLong(result);
    list = receiver_list(self);
    if (!list) /* torn: a server that goes on like that must not keep us from the clock */
        return PyErr_Occurred() ? NULL : PyLong_FromLong(-EINTR);
    return Py_BuildValue("KKKNK", (unsigned long long)self->batch.first_id,
                         (unsigned long long)(self->batch.first_id + self->batch.count - 1),
                         (unsigned long long)self->batch.lost, list,
                         (unsigned long long)self->batch.shift);
}

static PyObject *receiver_look(PyObject *object, PyObject *args) {
    struct receiver *self = (struct receiver *)object;
    int failed, result = receiver_fill(self, args, &failed);

    if (failed)
        return NULL;
    if (result != 0)
        return PyLong_FromLong(result);
    return Py_BuildValue("KKKnN", (unsigned long long)self->batch.first_id,
                         (unsigned long long)self->batch.lost,
                         (unsigned long long)self->batch.shift, (Py_ssize_t)self->batch.count,
                         PyLong_FromVoidPtr((void *)(uintptr_t)self->batch.items));
}

static PyMethodDef receiver_methods[] = {
    {"take", receiver_take, METH_VARARGS,
     "take(handled, timeout): (first id, last id, lost, list of bytes, shift), or a return code."},
    {"look", receiver_look, METH_VARARGS,
     "look(handled, timeout): (first id, lost, shift, count, address), or a return code."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot receiver_slots[] = {
    {Py_tp_new, receiver_new},
    {Py_tp_dealloc, receiver_dealloc},
    {Py_tp_methods, receiver_methods},
    {Py_tp_doc, "Receiver(owner, client, receive, whole, unread): addresses as integers."},
    {0, NULL},
};

static PyType_Spec receiver_spec = {
    .name = "jumiks._objects.Receiver",
    .basicsize = sizeof(struct receiver),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = receiver_slots,
};

/* ---- Gathered: where the bytes of a sequence's items are ---- */

struct gathered {
    PyObject_HEAD
    PyObject *items; /* a tuple: nobody else can change it meanwhile */
    struct jmk_slice *slices;
    Py_buffer *views; /* of the items that are not bytes */
    Py_ssize_t view_count;
};

static void gathered_dealloc(PyObject *object) {
    struct gathered *self = (struct gathered *)object;
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
static int gather_buffer(struct gathered *self, PyObject *item, Py_ssize_t at, Py_ssize_t count) {
    Py_buffer *view;

    if (!self->views) {
        self->views = PyMem_Calloc((size_t)count, sizeof *self->views);
        if (!self->views) {
            PyErr_NoMemory();
            return -1;
        }
    }
    view = &self->views[self->view_count];
    if (get_bytes(item, at, view) < 0)
        return -1;
    self->view_count++;
    self->slices[at] = (struct jmk_slice){view->buf, (size_t)view->len};
    return 0;
}

static int gather_items(struct gathered *self) {
    Py_ssize_t count = PyTuple_Size(self->items);

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

static PyObject *gather(PyObject *module, PyObject *sequence) {
    struct state *state = PyModule_GetState(module);
    struct gathered *self;

    if (PyUnicode_Check(sequence) || PyObject_CheckBuffer(sequence)) {
        raise_made("no_sequence", PyTuple_Pack(1, sequence));
        return NULL;
    }
    self = (struct gathered *)PyType_GenericAlloc(state->gathered, 0);
    if (!self)
        return NULL;
    self->items = PySequence_Tuple(sequence);
    if (!self->items || gather_items(self) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *gathered_address(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromVoidPtr(((struct gathered *)object)->slices);
}

static PyObject *gathered_count(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromSsize_t(PyTuple_Size(((struct gathered *)object)->items));
}

static PyGetSetDef gathered_getset[] = {
    {"address", gathered_address, NULL, "Address of the array of struct jmk_slice.", NULL},
    {"count", gathered_count, NULL, "Its length.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot gathered_slots[] = {
    {Py_tp_dealloc, gathered_dealloc},
    {Py_tp_getset, gathered_getset},
    {Py_tp_doc, "A snapshot of a sequence of buffers."},
    {0, NULL},
};

static PyType_Spec gathered_spec = {
    .name = "jumiks._objects.Gathered",
    .basicsize = sizeof(struct gathered),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = gathered_slots,
};

/* ---- Window: C memory as a buffer that counts who looks through it ---- */

struct window {
    PyObject_HEAD
    PyObject *owner;
    void *memory;
    Py_ssize_t size;
    int readonly;
    Py_ssize_t exports;
    void *area; /* what is its own, to be unmapped; or NULL */
    size_t area_length;
};

static PyObject *window_make(PyTypeObject *type, PyObject *owner, const void *memory, size_t size,
                             int readonly) {
    struct window *self = (struct window *)PyType_GenericAlloc(type, 0);

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
    return window_make(type, owner, pointer_from(address), (size_t)size, readonly);
}

static void window_dealloc(PyObject *object) {
    struct window *self = (struct window *)object;
    PyTypeObject *type = Py_TYPE(object);

    if (self->area)
        munmap(self->area, self->area_length);
    Py_XDECREF(self->owner);
    PyObject_Free(object);
    Py_DECREF(type);
}

static int window_getbuffer(PyObject *object, Py_buffer *view, int flags) {
    struct window *self = (struct window *)object;

    if (PyBuffer_FillInfo(view, object, self->memory, self->size, self->readonly, flags) < 0)
        return -1;
    self->exports++;
    return 0;
}

static void window_releasebuffer(PyObject *object, Py_buffer *view) {
    (void)view;
    ((struct window *)object)->exports--;
}

static PyObject *window_exports(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromSsize_t(((struct window *)object)->exports);
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

static PyType_Spec window_spec = {
    .name = "jumiks._objects.Window",
    .basicsize = sizeof(struct window),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = window_slots,
};

/* ---- Publisher: whatever takes the publisher's turn, and gives it back before it returns ---- */

struct publisher {
    PyObject_HEAD
    PyObject *owner;
    jmk_server *server;
    const struct jmk_publishing *core;
};

static PyObject *publisher_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *owner, *server, *core;
    struct publisher *self;

    (void)keywords;
    if (!PyArg_ParseTuple(args, "OO!O!", &owner, &PyLong_Type, &server, &PyLong_Type, &core))
        return NULL;
    self = (struct publisher *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->owner = Py_NewRef(owner);
    self->server = pointer_from(server);
    self->core = pointer_from(core);
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
    result = self->core->append(self->server, view->buf, (size_t)view->len, id);
    if (result == 0)
        self->core->kick(self->server);
    Py_END_ALLOW_THREADS
    return result;
}

/* The id, or a return code, which is always below the first id. */
static PyObject *publisher_append(PyObject *object, PyObject *data) {
    struct publisher *self = (struct publisher *)object;
    Py_buffer view;
    uint64_t id = 0;
    int result;

    if (get_bytes(data, -1, &view) < 0)
        return NULL;
    if (view.len > LARGE) {
        result = append_large(self, &view, &id);
    } else {
        result = self->core->append(self->server, view.buf, (size_t)view.len, &id);
        if (result == 0)
            self->core->kick(self->server);
    }
    PyBuffer_Release(&view);
    return result == 0 ? PyLong_FromUnsignedLongLong(id) : PyLong_FromLong(result);
}

/* Should a wait that gave result go on? Signal handlers run here, and not where the turn could be lost. */
static bool goes_on(int result) {
    return result == -EINTR && PyErr_CheckSignals() == 0;
}

static PyObject *publisher_append_many(PyObject *object, PyObject *args) {
    struct state *state = PyType_GetModuleState(Py_TYPE(object));
    struct publisher *self = (struct publisher *)object;
    struct gathered *found;
    struct jmk_account holder = {0};
    Py_ssize_t done;
    uint64_t first = 0;
    long long timeout;
    int64_t deadline;
    size_t count;
    int result;

    if (!PyArg_ParseTuple(args, "O!nL", state->gathered, &found, &done, &timeout))
        return NULL;
    deadline = self->core->deadline(timeout);
    count = (size_t)PyTuple_Size(found->items);
    do {
        Py_BEGIN_ALLOW_THREADS
        result = self->core->publish_many(self->server, found->slices, count, (size_t *)&done,
                                          &first, deadline, &holder);
        if (result != 0 && result != -EINTR)
            self->core->yield(self->server);
        Py_END_ALLOW_THREADS
    } while (goes_on(result));
    if (result == -EINTR) {
        self->core->yield(self->server);
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
    {Py_tp_doc, "Publisher(owner, server, core): addresses as integers; core is jmk_publishing()."},
    {0, NULL},
};

static PyType_Spec publisher_spec = {
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
    struct window *window;
    PyObject *view;
};

static PyObject *publisher_reserve(PyObject *object, PyObject *args) {
    struct state *state = PyType_GetModuleState(Py_TYPE(object));
    struct reservation *self;
    Py_ssize_t size;
    long long timeout;
    PyObject *fail;

    if (!PyArg_ParseTuple(args, "nLO", &size, &timeout, &fail))
        return NULL;
    self = (struct reservation *)PyType_GenericAlloc(state->reservation, 0);
    if (!self)
        return NULL;
    self->publisher = (struct publisher *)Py_NewRef(object);
    self->fail = Py_NewRef(fail);
    self->size = size;
    self->timeout = timeout;
    return (PyObject *)self;
}

/* Whoever still looks through the window keeps what stands there, and cannot reach the log any more. */
static int take_back(struct reservation *self) {
    struct window *window = self->window;
    PyObject *done = PyObject_CallMethod(self->view, "release", NULL);
    int result;

    if (!done)
        PyErr_Clear(); /* it is in use: that counts as an export */
    Py_XDECREF(done);
    if (!window->exports || !self->size)
        return 0;
    result =
        self->publisher->core->take_back(self->publisher->server, window->memory,
                                         (size_t)self->size, &window->area, &window->area_length);
    if (result == 0)
        Py_CLEAR(window->owner);
    return result;
}

/* End it: commit it, or discard it. A return code. What it held of the server is let go. */
static int end_reservation(struct reservation *self, bool publish) {
    const struct jmk_publishing *core = self->publisher->core;
    jmk_server *server = self->publisher->server;
    int result;

    self->open = false;
    result = self->window ? take_back(self) : 0;
    if (!publish || result != 0)
        core->discard(server);
    else
        result = core->commit(server, &self->id);
    if (publish && result == 0)
        core->kick(server);
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
    struct state *state = PyType_GetModuleState(Py_TYPE(object));
    struct publisher *publisher = self->publisher;
    struct jmk_account holder = {0};
    int64_t deadline;
    void *where;
    int result;

    (void)unused;
    if (self->entered)
        return fail_with(self, 0, NULL);
    deadline = publisher->core->deadline(self->timeout);
    do {
        Py_BEGIN_ALLOW_THREADS
        result = publisher->core->reserve(publisher->server, (size_t)self->size, &where, deadline,
                                          &holder);
        Py_END_ALLOW_THREADS
    } while (goes_on(result));
    if (result == -EINTR)
        return NULL;
    if (result != 0)
        return fail_with(self, result, &holder);
    self->entered = self->open = true;
    self->window =
        (struct window *)window_make(state->window, publisher->owner, where, (size_t)self->size, 0);
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

static PyType_Spec reservation_spec = {
    .name = "jumiks._objects.Reservation",
    .basicsize = sizeof(struct reservation),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = reservation_slots,
};

/* ---- lists of what was received ---- */

static PyObject *message_list(PyObject *module, PyObject *args) {
    PyObject *address;
    Py_ssize_t count;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!n", &PyLong_Type, &address, &count))
        return NULL;
    return list_of(pointer_from(address), count);
}

static PyObject *view_of(struct state *state, PyObject *owner, const struct jmk_slice *item) {
    PyObject *window = window_make(state->window, owner, item->data, item->size, 1);
    PyObject *view;

    if (!window)
        return NULL;
    view = PyMemoryView_FromObject(window);
    Py_DECREF(window);
    return view;
}

static PyObject *view_list(PyObject *module, PyObject *args) {
    PyObject *owner, *address, *list;
    const struct jmk_slice *items;
    Py_ssize_t count;

    if (!PyArg_ParseTuple(args, "OO!n", &owner, &PyLong_Type, &address, &count))
        return NULL;
    items = pointer_from(address);
    list = PyList_New(count);
    if (!list)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *view = view_of(PyModule_GetState(module), owner, &items[i]);

        if (!view || PyList_SetItem(list, i, view) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

/* ---- the module ---- */

static PyMethodDef functions[] = {
    {"gather", gather, METH_O, "gather(sequence): where the bytes of its items are."},
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
    struct state *state = PyModule_GetState(module);

    if (add_type(module, &publisher_spec, "Publisher", NULL) < 0 ||
        add_type(module, &receiver_spec, "Receiver", NULL) < 0 ||
        add_type(module, &gathered_spec, "Gathered", &state->gathered) < 0 ||
        add_type(module, &window_spec, "Window", &state->window) < 0 ||
        add_type(module, &reservation_spec, "Reservation", &state->reservation) < 0)
        return -1;
    return 0;
}

static int traverse_module(PyObject *module, visitproc visit, void *arg) {
    struct state *state = PyModule_GetState(module);

    Py_VISIT((PyObject *)state->window);
    Py_VISIT((PyObject *)state->gathered);
    Py_VISIT((PyObject *)state->reservation);
    return 0;
}

static int clear_module(PyObject *module) {
    struct state *state = PyModule_GetState(module);

    Py_CLEAR(state->window);
    Py_CLEAR(state->gathered);
    Py_CLEAR(state->reservation);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, fill_module},
    {0, NULL},
};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "jumiks._objects",
    .m_doc = "Loops between Python objects and C memory.",
    .m_size = sizeof(struct state),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = traverse_module,
    .m_clear = clear_module,
};

PyMODINIT_FUNC PyInit__objects(void);

PyMODINIT_FUNC PyInit__objects(void) {
    return PyModuleDef_Init(&module_definition);
}
