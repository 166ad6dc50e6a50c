/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AsyncMessages: a loop over a client's stream in an event loop. NextMessage: what it awaits
 *
 * A message that is here is handed out without a coroutine. Otherwise a coroutine of Python's waits, and
 * NextMessage passes on to it what the event loop sends and throws.
 *
 * A message is taken once it is awaited, not before. So whoever asks for the next one and gives that up
 * loses nothing.
 */
#include "python/objects.h"

struct async_messages {
    PyObject_HEAD
    PyObject *stream; /* a Handout */
    PyObject *wait;   /* makes a coroutine that returns the next item; NULL: it was closed */
};

struct next_message {
    PyObject_HEAD
    PyObject *stream, *wait; /* its loop's; wait is None of a close, and NULL behind the end */
    PyObject *coroutine;     /* what waits; NULL: nothing does */
    bool awaited;
};

/* ---- what is awaited ---- */

static PyObject *new_next(PyTypeObject *type, PyObject *stream, PyObject *wait) {
    struct next_message *self = (struct next_message *)PyType_GenericAlloc(type, 0);

    if (!self)
        return NULL;
    self->stream = Py_XNewRef(stream);
    self->wait = Py_XNewRef(wait);
    return (PyObject *)self;
}

static int next_traverse(PyObject *object, visitproc visit, void *arg) {
    struct next_message *self = (struct next_message *)object;

    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->stream);
    Py_VISIT(self->wait);
    Py_VISIT(self->coroutine);
    return 0;
}

static int next_clear(PyObject *object) {
    struct next_message *self = (struct next_message *)object;

    Py_CLEAR(self->stream);
    Py_CLEAR(self->wait);
    Py_CLEAR(self->coroutine);
    return 0;
}

static void next_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);

    PyObject_GC_UnTrack(object);
    next_clear(object);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* Make the coroutine that waits. False with an error. */
static bool start(struct next_message *self) {
    self->awaited = true;
    self->coroutine = PyObject_CallNoArgs(self->wait);
    return self->coroutine != NULL;
}

static PySendResult send_on(struct next_message *self, PyObject *value, PyObject **result) {
    PyObject *coroutine = Py_NewRef(self->coroutine);
    PySendResult sent = PyIter_Send(coroutine, value, result);

    if (sent != PYGEN_NEXT)
        Py_CLEAR(self->coroutine);
    Py_DECREF(coroutine);
    return sent;
}

static PySendResult send_in(struct next_message *self, PyObject *value, PyObject **result) {
    *result = NULL;
    if (self->coroutine)
        return send_on(self, value, result);
    if (self->awaited) {
        PyErr_SetString(PyExc_RuntimeError, "the next message was awaited already");
        return PYGEN_ERROR;
    }
    if (!self->wait)
        PyErr_SetNone(PyExc_StopAsyncIteration);
    else if (self->wait == Py_None)
        *result = Py_NewRef(Py_None);
    else if (jmk_handout_ack_in_time(self->stream))
        *result = jmk_handout_ready(self->stream);
    self->awaited = *result || PyErr_Occurred();
    if (self->awaited)
        return *result ? PYGEN_RETURN : PYGEN_ERROR;
    return start(self) ? send_on(self, value, result) : PYGEN_ERROR;
}

static PySendResult next_send(PyObject *object, PyObject *value, PyObject **result) {
    PySendResult sent;

    JMK_ALONE(object);
    sent = send_in((struct next_message *)object, value, result);
    JMK_END_ALONE();
    return sent;
}

/* The same as generators have it: what is returned is raised in a StopIteration. */
static PyObject *next_step(PyObject *object, PyObject *value) {
    PyObject *result, *stop;
    PySendResult sent = next_send(object, value, &result);

    if (sent != PYGEN_RETURN)
        return result;
    stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, result, NULL);
    if (stop)
        PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
    Py_DECREF(result);
    return NULL;
}

static PyObject *next_iternext(PyObject *object) {
    return next_step(object, Py_None);
}

static PyObject *throw_in(struct next_message *self, PyObject *args) {
    PyObject *coroutine, *throw, *result = NULL;

    if (!self->coroutine && (self->awaited || !self->stream || !start(self))) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "nothing is awaited");
        return NULL;
    }
    coroutine = Py_NewRef(self->coroutine);
    throw = PyObject_GetAttrString(coroutine, "throw");
    if (throw)
        result = PyObject_CallObject(throw, args);
    if (!result)
        Py_CLEAR(self->coroutine);
    Py_XDECREF(throw);
    Py_DECREF(coroutine);
    return result;
}

static PyObject *next_throw(PyObject *object, PyObject *args) {
    PyObject *result;

    JMK_ALONE(object);
    result = throw_in((struct next_message *)object, args);
    JMK_END_ALONE();
    return result;
}

static PyObject *next_close(PyObject *object, PyObject *unused) {
    struct next_message *self = (struct next_message *)object;
    PyObject *coroutine, *done;

    (void)unused;
    JMK_ALONE(object);
    coroutine = self->coroutine;
    self->awaited = true;
    self->coroutine = NULL;
    JMK_END_ALONE();
    if (!coroutine)
        Py_RETURN_NONE;
    done = PyObject_CallMethod(coroutine, "close", NULL);
    Py_DECREF(coroutine);
    return done;
}

static PyMethodDef next_methods[] = {
    {"send", next_step, METH_O, "Go on, as a coroutine does."},
    {"throw", next_throw, METH_VARARGS, "Raise an exception where it waits."},
    {"close", next_close, METH_NOARGS, "Wait no more."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot next_slots[] = {
    {Py_tp_dealloc, next_dealloc},
    {Py_tp_traverse, next_traverse},
    {Py_tp_clear, next_clear},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, next_send},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, next_iternext},
    {Py_tp_methods, next_methods},
    {Py_tp_doc, "What a step of AsyncMessages awaits."},
    {0, NULL},
};

PyType_Spec jmk_next_message_type = {
    .name = "jumiks._objects.NextMessage",
    .basicsize = sizeof(struct next_message),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = next_slots,
};

/* ---- the loop ---- */

static PyObject *loop_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    struct jmk_types *types = PyType_GetModuleState(type);
    PyObject *stream, *wait;
    struct async_messages *self;

    (void)keywords;
    if (!PyArg_ParseTuple(args, "O!O", types->handout, &stream, &wait))
        return NULL;
    self = (struct async_messages *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->stream = Py_NewRef(stream);
    self->wait = Py_NewRef(wait);
    return (PyObject *)self;
}

static int loop_traverse(PyObject *object, visitproc visit, void *arg) {
    struct async_messages *self = (struct async_messages *)object;

    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->stream);
    Py_VISIT(self->wait);
    return 0;
}

static int loop_clear(PyObject *object) {
    struct async_messages *self = (struct async_messages *)object;

    Py_CLEAR(self->stream);
    Py_CLEAR(self->wait);
    return 0;
}

static void loop_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);

    PyObject_GC_UnTrack(object);
    loop_clear(object);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* Behind the end it fails once it is awaited: anext() of Python 3.11 crashes if there is nothing to await. */
static PyObject *loop_next(PyObject *object) {
    struct jmk_types *types = PyType_GetModuleState(Py_TYPE(object));
    struct async_messages *self = (struct async_messages *)object;
    PyObject *next;

    JMK_ALONE(object);
    next = new_next(types->next_message, self->wait ? self->stream : NULL, self->wait);
    JMK_END_ALONE();
    return next;
}

static PyObject *loop_aclose(PyObject *object, PyObject *unused) {
    struct jmk_types *types = PyType_GetModuleState(Py_TYPE(object));

    (void)unused;
    JMK_ALONE(object);
    Py_CLEAR(((struct async_messages *)object)->wait);
    JMK_END_ALONE();
    return new_next(types->next_message, NULL, Py_None);
}

static PyMethodDef loop_methods[] = {
    {"aclose", loop_aclose, METH_NOARGS, "End the loop, as an asynchronous generator does."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot loop_slots[] = {
    {Py_tp_new, loop_new},
    {Py_tp_dealloc, loop_dealloc},
    {Py_tp_traverse, loop_traverse},
    {Py_tp_clear, loop_clear},
    {Py_am_aiter, PyObject_SelfIter},
    {Py_am_anext, loop_next},
    {Py_tp_methods, loop_methods},
    {Py_tp_doc,
     "AsyncMessages(stream, wait): iterate over a Handout. wait() makes a coroutine that "
     "returns the next item where that is Python's."},
    {0, NULL},
};

PyType_Spec jmk_async_messages_type = {
    .name = "jumiks._objects.AsyncMessages",
    .basicsize = sizeof(struct async_messages),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = loop_slots,
};
