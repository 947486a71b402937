/* Calls one signature of a SavedModel through TensorFlow's C interface: no Python in the process.

   usage: client FOLDER OUTPUT_OPERATION OUTPUT_INDEX RESULT_FILE {OPERATION DTYPE INPUT_FILE NUM_DIMS DIM...}...

   Writes the bytes of the output tensor to RESULT_FILE. Ends with TensorFlow's status code, 0 for success; the message is on
   standard error. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

#define MAX_INPUTS 8

static int failed(TF_Status *status) {
  if (TF_GetCode(status) == TF_OK) return 0;
  fprintf(stderr, "%s\n", TF_Message(status));
  return TF_GetCode(status);
}

static TF_Operation *operation(TF_Graph *graph, const char *name) {
  TF_Operation *found = TF_GraphOperationByName(graph, name);
  if (!found) {
    fprintf(stderr, "no operation %s\n", name);
    exit(100);
  }
  return found;
}

int main(int argc, char **argv) {
  if (argc < 5) return 101;
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  const char *tags[] = {"serve"};
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  if (failed(status)) return TF_GetCode(status);

  TF_Output inputs[MAX_INPUTS];
  TF_Tensor *values[MAX_INPUTS];
  int count = 0;
  for (int at = 5; at < argc; count++) {
    TF_DataType dtype = (TF_DataType)atoi(argv[at + 1]);
    int num_dims = atoi(argv[at + 3]);
    int64_t dims[8], size = TF_DataTypeSize(dtype);
    if (count == MAX_INPUTS || num_dims > 8) return 102;
    for (int i = 0; i < num_dims; i++) size *= dims[i] = atoll(argv[at + 4 + i]);
    inputs[count] = (TF_Output){operation(graph, argv[at]), 0};
    values[count] = TF_AllocateTensor(dtype, dims, num_dims, size);
    FILE *file = fopen(argv[at + 2], "rb");
    if (!file || fread(TF_TensorData(values[count]), 1, size, file) != (size_t)size) return 103;
    fclose(file);
    at += 4 + num_dims;
  }

  TF_Output output = {operation(graph, argv[2]), atoi(argv[3])};
  TF_Tensor *result = NULL;
  TF_SessionRun(session, NULL, inputs, values, count, &output, &result, 1, NULL, 0, NULL, status);
  if (failed(status)) return TF_GetCode(status);
  FILE *file = fopen(argv[4], "wb");
  if (!file || fwrite(TF_TensorData(result), 1, TF_TensorByteSize(result), file) != TF_TensorByteSize(result)) return 104;
  return fclose(file) ? 105 : 0;
}
