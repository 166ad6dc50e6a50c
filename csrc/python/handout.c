/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Handout: the part of a client's stream that hands out messages. Messages: a loop over it
 *
 * What is usual stays in C: messages that are there, the position, and acks in time. Whatever else there
 * may be is Python's (src/jumiks/_client/stream.py): gaps, labels, a server that is gone, a user who polls.
 * It says so by `direct`, and what was received stays in the receiver until Python asks for it.
 *
 * `out` moves last, when the message is an object already and nothing else can fail. From there to the
 * caller runs no bytecode. But Python handles signals behind each call of a C function, so a message that
 * such a call returns can be lost. Behind a step of a `for` loop, and behind a subscript, it does not. So a
 * message leaves by one of these.
 */
#include "python/objects.h"

#include <time.h>

#define MOST 256 /* messages that are made into objects at a time: they stay in the cache */
#define ACK_TIME 10000000 /* ns after which a slow user acks what it has handled */

struct handout {
    PyObject_HEAD
    struct jmk_receiver *receiver; /* NULL: the client is closed, or not connected yet */
    uint64_t out; /* the last message handed out */
    uint64_t returned; /* the last one handed out before the user came back for more */
    uint64_t first, last; /* of those taken: the first, and the last to hand out */
    PyObject *messages; /* a list of them; NULL: none */
    uint64_t
        ahead; /* the last in the list; each is acked before it is one to hand out. 0: they are not */
    bool acks_ahead; /* ack="before" */
    bool direct; /* the next ones may be taken here */
    uint64_t quarter; /* messages: an ack at least this often; 0: none but by hand */
    uint64_t ack_at; /* the message behind which it acks next, ... */
    uint64_t ack_time; /* ... or the time */
    uint64_t slice_last; /* in an event loop: other tasks run behind that message, ... */
    uint64_t slice_ends; /* ... or at that time (CLOCK_MONOTONIC, ns) */
};

static uint64_t read_clock(clockid_t clock) {
    struct timespec found;

    clock_gettime(clock, &found);
    return (uint64_t)found.tv_sec * 1000000000 + (uint64_t)found.tv_nsec;
}

static uint64_t now(void) {
    return read_clock(CLOCK_MONOTONIC);
}

/* A look at this clock costs little. It is late by some milliseconds. */
static uint64_t coarse_now(void) {
    return read_clock(CLOCK_MONOTONIC_COARSE);
}

static void set_next_ack(struct handout *self, uint64_t handled) {
    self->ack_at = handled + self->quarter;
    self->ack_time = coarse_now() + ACK_TIME;
}

/* It takes over `messages`. The list before has bytes alone, so giving it back runs no other code. */
static void set_taken(struct handout *self, uint64_t first, uint64_t last, PyObject *messages) {
    PyObject *before = self->messages;

    self->first = first;
    self->last = last;
    self->messages = messages;
    Py_XDECREF(before);
    if (last > first)
        set_next_ack(self, first - 1);
}

/* ---- handing out ---- */

/* The next one of those taken, of which there is one. */
static PyObject *hand_out(struct handout *self) {
    PyObject *message = PyList_GetItem(self->messages, (Py_ssize_t)(self->out + 1 - self->first));

    if (!message)
        return NULL;
    self->out++;
    return Py_NewRef(message);
}

/*
 * Is there one to hand out? With acks ahead the next one is acked here, as far as that needs no wait; it
 * is Python's else.
 */
static bool has_next(struct handout *self) {
    jmk_client *client = self->receiver->client;
    uint64_t due = self->out + 1;

    if (self->out < self->last)
        return true;
    if (!self->direct || due > self->ahead || jmk_client_ack(client, due, 0) != 0 ||
        jmk_client_acked_id(client) < due)
        return false;
    self->last = due;
    return true;
}

/* Receive into the receiver's batch. A return code; nothing there is JMK_E_TIMEOUT. */
static int receive(struct jmk_receiver *receiver, uint64_t handled, bool wait) {
    struct jmk_batch *batch = &receiver->batch;
    int result;

    if (!receiver->busy && batch->count && batch->first_id > handled)
        return 0; /* it was kept from being handed out */
    result = jmk_receiver_take(receiver, handled, MOST);
    return result == JMK_E_TIMEOUT && wait ? jmk_receiver_receive(receiver, handled, -1, MOST)
                                           : result;
}

/* May what was received be handed out here? Another thread, or a destructor, may have come between. */
static bool is_direct(const struct handout *self, const struct jmk_receiver *receiver,
                      uint64_t out) {
    const struct jmk_batch *batch = &receiver->batch;

    return self->direct && self->receiver == receiver && self->out == out && batch->count &&
           batch->first_id > out && !batch->lost && !batch->shift;
}

/* Make the batch into objects, and hand out the first. NULL without an error: it is Python's. */
static PyObject *hand_out_batch(struct handout *self, struct jmk_receiver *receiver) {
    uint64_t out = self->out, first = receiver->batch.first_id;
    PyObject *list, *message = NULL;

    if (!is_direct(self, receiver, out))
        return NULL;
    list = jmk_receiver_copy(receiver);
    if (list && is_direct(self, receiver, out) && receiver->batch.first_id == first) {
        uint64_t last = first + (uint64_t)PyList_Size(list) - 1;

        self->out = first - 1;
        self->ahead = self->acks_ahead ? last : 0;
        set_taken(self, first, self->acks_ahead ? self->out : last, Py_NewRef(list));
        message = has_next(self) ? hand_out(self) : NULL;
    }
    Py_XDECREF(list);
    return message;
}

/* A slow stream has one message at a time, which needs no list. */
static PyObject *hand_out_one(struct handout *self, struct jmk_receiver *receiver) {
    const struct jmk_slice *item = receiver->batch.items;
    uint64_t first = receiver->batch.first_id;
    PyObject *message;

    if (!is_direct(self, receiver, self->out))
        return NULL;
    message = PyBytes_FromStringAndSize(item->data, (Py_ssize_t)item->size);
    if (message && !jmk_client_batch_is_intact(receiver->client)) {
        Py_CLEAR(message);
        jmk_receiver_drop(receiver);
    }
    if (message)
        self->out = first;
    return message;
}

/* Take what is there, and hand out the first. NULL without an error: it is Python's. */
static PyObject *take_next(struct handout *self, bool wait) {
    struct jmk_receiver *receiver = self->receiver;
    PyObject *message = NULL;

    self->returned = self->out;
    self->ahead = 0;
    set_taken(self, 0, 0, NULL); /* while it waits it keeps none of the old ones in memory */
    Py_INCREF((PyObject *)receiver); /* the client may be closed meanwhile */
    if (receive(receiver, self->out, wait) == 0)
        message = receiver->batch.count == 1 && !self->acks_ahead ? hand_out_one(self, receiver)
                                                                  : hand_out_batch(self, receiver);
    Py_DECREF((PyObject *)receiver);
    return message;
}

static bool may_take(const struct handout *self) {
    return self->direct && self->out >= self->last && self->out >= self->ahead;
}

/* Without a GIL another thread may close the client at any moment, so the receiver is held. */
static struct jmk_receiver *hold_receiver(struct handout *self) {
#ifdef Py_GIL_DISABLED
    PyObject *receiver;

    JMK_ALONE(self);
    receiver = Py_XNewRef((PyObject *)self->receiver);
    JMK_END_ALONE();
    return (struct jmk_receiver *)receiver;
#else
    return self->receiver;
#endif
}

static void let_go(struct jmk_receiver *receiver) {
#ifdef Py_GIL_DISABLED
    Py_XDECREF((PyObject *)receiver);
#else
    (void)receiver;
#endif
}

/* A caller in C comes back without a bytecode, which is where signals are handled: SIGNALS_AND_WAIT. */
enum wait { NO_WAIT, WAIT, SIGNALS_AND_WAIT };

/* The next message of that receiver. NULL without an error: it is Python's. */
static PyObject *next_from(struct handout *self, struct jmk_receiver *receiver, enum wait wait) {
    if (self->receiver != receiver)
        return NULL;
    if (has_next(self))
        return hand_out(self);
    if (!may_take(self))
        return NULL;
    if (wait == SIGNALS_AND_WAIT &&
        (PyErr_CheckSignals() < 0 || self->receiver != receiver || !may_take(self)))
        return NULL;
    return take_next(self, wait != NO_WAIT);
}

static PyObject *next_message(struct handout *self, enum wait wait) {
    struct jmk_receiver *receiver = hold_receiver(self);
    PyObject *message;

    if (!receiver)
        return NULL;
    JMK_ALONE2(self, receiver);
    message = next_from(self, receiver, wait);
    JMK_END_ALONE2();
    let_go(receiver);
    return message;
}

/* ---- acks in time, of a loop and of one receive after another ---- */

/* The message up to which it is time to ack, of those taken; 0: none. */
static uint64_t due_ack(struct handout *self) {
    uint64_t due = 0;

    JMK_ALONE(self);
    if (self->receiver && self->quarter && self->out >= self->first && self->out < self->last &&
        (self->out >= self->ack_at || coarse_now() >= self->ack_time)) {
        due = self->out;
        set_next_ack(self, due);
    }
    JMK_END_ALONE();
    return due;
}

bool jmk_handout_ack_in_time(PyObject *object) {
    unsigned long long due = due_ack((struct handout *)object);
    PyObject *done;

    if (!due)
        return true;
    done = PyObject_CallMethod(object, "ack_in_loop", "K", due);
    Py_XDECREF(done);
    return done != NULL;
}

/* The next message within a timeout, or None: then Python is to look for it. */
static PyObject *handout_next(PyObject *object, PyObject *timeout) {
    PyObject *message = NULL;

    if (!jmk_handout_ack_in_time(object))
        return NULL;
    if (jmk_is_timeout(timeout)) /* Python's waits can end in parts */
        message = next_message((struct handout *)object, timeout == Py_None ? WAIT : NO_WAIT);
    return (message || PyErr_Occurred()) ? message : Py_NewRef(Py_None);
}

PyObject *jmk_handout_ready(PyObject *object) {
    struct handout *self = (struct handout *)object;
    bool others_first;

    JMK_ALONE(object);
    others_first = self->out >= self->slice_last || now() >= self->slice_ends;
    JMK_END_ALONE();
    return others_first ? NULL : next_message(self, NO_WAIT);
}

/* ---- what Python sees of it ---- */

static PyObject *get_ready(PyObject *object, void *closure) {
    PyObject *message;

    (void)closure;
    if (!jmk_handout_ack_in_time(object))
        return NULL;
    message = jmk_handout_ready(object);
    return (message || PyErr_Occurred()) ? message : Py_NewRef(Py_None);
}

static PyObject *get_receiver(PyObject *object, void *closure) {
    PyObject *receiver;

    (void)closure;
    JMK_ALONE(object);
    receiver = Py_XNewRef((PyObject *)((struct handout *)object)->receiver);
    JMK_END_ALONE();
    return receiver ? receiver : Py_NewRef(Py_None);
}

static int set_receiver(PyObject *object, PyObject *value, void *closure) {
    struct handout *self = (struct handout *)object;
    PyObject *before;

    (void)closure;
    if (!value || (value != Py_None && !jmk_is_receiver(value))) {
        PyErr_SetString(PyExc_TypeError, "it is a Receiver or None");
        return -1;
    }
    JMK_ALONE(object);
    before = (PyObject *)self->receiver;
    self->receiver = value == Py_None ? NULL : (struct jmk_receiver *)Py_NewRef(value);
    JMK_END_ALONE();
    Py_XDECREF(before);
    return 0;
}

/* closure: where the number is in the struct. */
static PyObject *get_number(PyObject *object, void *closure) {
    uint64_t number;

    JMK_ALONE(object);
    number = *(uint64_t *)(void *)((char *)object + (size_t)closure);
    JMK_END_ALONE();
    return PyLong_FromUnsignedLongLong(number);
}

static int set_number(PyObject *object, PyObject *value, void *closure) {
    unsigned long long number = value ? PyLong_AsUnsignedLongLong(value) : 0;

    if (!value)
        PyErr_SetString(PyExc_TypeError, "it is a number");
    if (PyErr_Occurred())
        return -1;
    JMK_ALONE(object);
    *(uint64_t *)(void *)((char *)object + (size_t)closure) = number;
    JMK_END_ALONE();
    return 0;
}

static PyObject *get_flag(PyObject *object, void *closure) {
    bool flag;

    JMK_ALONE(object);
    flag = *(bool *)(void *)((char *)object + (size_t)closure);
    JMK_END_ALONE();
    return PyBool_FromLong(flag);
}

static int set_flag(PyObject *object, PyObject *value, void *closure) {
    JMK_ALONE(object);
    *(bool *)(void *)((char *)object + (size_t)closure) = value == Py_True;
    JMK_END_ALONE();
    return 0;
}

static PyObject *get_taken(PyObject *object, void *closure) {
    struct handout *self = (struct handout *)object;
    unsigned long long first, last;
    PyObject *messages;

    (void)closure;
    JMK_ALONE(object);
    first = self->first;
    last = self->last;
    messages = Py_XNewRef(self->messages);
    JMK_END_ALONE();
    return Py_BuildValue("KKN", first, last, messages ? messages : PyList_New(0));
}

static int set_taken_from(PyObject *object, PyObject *value, void *closure) {
    unsigned long long first, last;
    PyObject *messages;

    (void)closure;
    if (!value || !PyTuple_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "it is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(value, "KKO!", &first, &last, &PyList_Type, &messages))
        return -1;
    JMK_ALONE(object);
    set_taken((struct handout *)object, first, last, Py_NewRef(messages));
    JMK_END_ALONE();
    return 0;
}

static void handout_dealloc(PyObject *object) {
    struct handout *self = (struct handout *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);

    Py_XDECREF((PyObject *)self->receiver);
    Py_XDECREF(self->messages);
    free_object(object);
    Py_DECREF(type);
}

#define NUMBER(name, words)                                                                        \
    {#name, get_number, set_number, words, (void *)offsetof(struct handout, name)}

#define FLAG(name, words) {#name, get_flag, set_flag, words, (void *)offsetof(struct handout, name)}

static PyGetSetDef handout_getset[] = {
    {"receiver", get_receiver, set_receiver, "What takes from the core; None once it is closed.",
     NULL},
    {"taken", get_taken, set_taken_from,
     "Messages that are objects already: id of the first, id of the last to hand out, a list.",
     NULL},
    FLAG(direct, "Whether the next ones may be taken without Python."),
    FLAG(acks_ahead, "Whether each message is acked before it is handed out."),
    NUMBER(ahead, "The last of those that are acked one by one as they are handed out; 0: none."),
    NUMBER(out, "The id of the last message handed out, whose moving is what hands out."),
    NUMBER(returned, "The last message handed out before the user came back for more."),
    NUMBER(quarter, "Messages after which it acks at the latest; 0: it does not."),
    {"ready", get_ready, NULL,
     "The next message that is here, or None if there is none, or other tasks have to run.", NULL},
    NUMBER(slice_last, "The message behind which other tasks of an event loop run, ..."),
    NUMBER(slice_ends, "... and the time (CLOCK_MONOTONIC, ns)."),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot handout_slots[] = {
    {Py_tp_dealloc, handout_dealloc},
    {Py_tp_getset, handout_getset},
    {Py_mp_subscript, handout_next},
    {Py_tp_doc, "The part of a stream that is in C: stream[timeout] is the next message, or None "
                "if Python is to look for it."},
    {0, NULL},
};

PyType_Spec jmk_handout_type = {
    .name = "jumiks._objects.Handout",
    .basicsize = sizeof(struct handout),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = handout_slots,
};

/* ---- a loop ---- */

struct messages {
    PyObject_HEAD
    struct handout *stream;
    PyObject *wait; /* returns the next item where that is Python's; None: there is none any more */
};

static PyObject *messages_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    struct jmk_types *types = PyType_GetModuleState(type);
    PyObject *stream, *wait;
    struct messages *self;

    (void)keywords;
    if (!PyArg_ParseTuple(args, "O!O", types->handout, &stream, &wait))
        return NULL;
    self = (struct messages *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->stream = (struct handout *)Py_NewRef(stream);
    self->wait = Py_NewRef(wait);
    return (PyObject *)self;
}

static int messages_traverse(PyObject *object, visitproc visit, void *arg) {
    struct messages *self = (struct messages *)object;

    Py_VISIT(Py_TYPE(object));
    Py_VISIT((PyObject *)self->stream);
    Py_VISIT(self->wait);
    return 0;
}

static int messages_clear(PyObject *object) {
    struct messages *self = (struct messages *)object;

    Py_CLEAR(self->stream);
    Py_CLEAR(self->wait);
    return 0;
}

static void messages_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);

    PyObject_GC_UnTrack(object);
    messages_clear(object);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* The next item; NULL is the end, or an error. */
static PyObject *next_item(struct messages *self) {
    PyObject *item = NULL, *wait;

    if (jmk_handout_ack_in_time((PyObject *)self->stream))
        item = next_message(self->stream, SIGNALS_AND_WAIT);
    if (item || PyErr_Occurred() || !self->wait)
        return item;
    wait = Py_NewRef(self->wait);
    item = PyObject_CallNoArgs(wait);
    Py_DECREF(wait);
    if (item == Py_None)
        Py_CLEAR(item);
    return item;
}

static PyObject *messages_next(PyObject *object) {
    struct messages *self = (struct messages *)object;
    PyObject *item = NULL;

    JMK_ALONE(object);
    if (self->wait) { /* else it has ended */
        item = next_item(self);
        if (!item)
            Py_CLEAR(self->wait);
    }
    JMK_END_ALONE();
    return item;
}

static PyType_Slot messages_slots[] = {
    {Py_tp_new, messages_new},
    {Py_tp_dealloc, messages_dealloc},
    {Py_tp_traverse, messages_traverse},
    {Py_tp_clear, messages_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, messages_next},
    {Py_tp_doc,
     "Messages(stream, wait): iterate over a Handout. wait() returns the next item where "
     "that is Python's, or None at the end."},
    {0, NULL},
};

PyType_Spec jmk_messages_type = {
    .name = "jumiks._objects.Messages",
    .basicsize = sizeof(struct messages),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = messages_slots,
};
