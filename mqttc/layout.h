/* Compares struct layouts between modules at import.
 *
 * setup.py includes this on the command line in every extension module, after defining
 *   MQTTC_MODULE  the module's name
 *   MQTTC_LAYOUT  {"path of a .pxd or .h", "hash of its bytes"} for each one that the module depends on, then {0, 0}.
 *
 * Cython's generated PyInit_* ends in a call of PyModuleDef_Init, which is replaced here by one that first looks every file up in
 * `mqttc.__layout__`, a dict of path to (hash, first module that carried it). A different hash there means that two modules
 * were built from different versions of one declaration: they would disagree about the bytes, so the import is refused.
 * All with the GIL held (or an attached thread state), once per module. A module author has nothing to do. */
#ifndef MQTTC_LAYOUT_H
#define MQTTC_LAYOUT_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>
#include <string.h>

/* Returns the dict `mqttc.__layout__`, made on first use; a new reference, or NULL with an exception set. */
static PyObject *mqttc_layout_table(void)
{
    PyObject *package = PyImport_ImportModule("mqttc");
    PyObject *names, *key, *fresh, *table = NULL;
    if (package == NULL)
        return NULL;
    names = PyModule_GetDict(package); /* borrowed */
    key = PyUnicode_InternFromString("__layout__");
    fresh = PyDict_New();
    if (names != NULL && key != NULL && fresh != NULL) {
        table = PyDict_SetDefault(names, key, fresh); /* borrowed */
        Py_XINCREF(table);
    }
    Py_XDECREF(key);
    Py_XDECREF(fresh);
    Py_DECREF(package);
    return table;
}

/* Compares one file's hash with the table, and with `add` enters it. Returns 0, or -1 with an exception set. */
static int mqttc_layout_compare(PyObject *table, const char *path, const char *hash, int add)
{
    PyObject *known = PyDict_GetItemString(table, path); /* borrowed; the table only grows */
    const char *known_hash, *known_module;
    if (known != NULL) {
        if (!PyArg_ParseTuple(known, "ss", &known_hash, &known_module))
            return -1;
        if (strcmp(known_hash, hash) == 0)
            return 0;
        PyErr_Format(PyExc_ImportError,
                     "%s and %s were built from different versions of %s (%s and %s): build mqttc again, whole",
                     MQTTC_MODULE, known_module, path, hash, known_hash);
        return -1;
    }
    if (add) {
        PyObject *entry = Py_BuildValue("(ss)", hash, MQTTC_MODULE);
        int failed = entry == NULL || PyDict_SetItemString(table, path, entry) < 0;
        Py_XDECREF(entry);
        return failed ? -1 : 0;
    }
    return 0;
}

static PyObject *mqttc_module_init(PyModuleDef *definition)
{
    static const char *const layout[][2] = {MQTTC_LAYOUT};
    PyObject *table = mqttc_layout_table();
    int add;
    size_t i;
    if (table == NULL)
        return NULL;
    for (add = 0; add < 2; add++) { /* nothing is entered for a module that is refused */
        for (i = 0; layout[i][0] != NULL; i++) {
            if (mqttc_layout_compare(table, layout[i][0], layout[i][1], add) < 0) {
                Py_DECREF(table);
                return NULL;
            }
        }
    }
    Py_DECREF(table);
    return PyModuleDef_Init(definition);
}
#define PyModuleDef_Init mqttc_module_init

#endif
