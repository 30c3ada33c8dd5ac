#include "files.h"
int files_get (uint16_t s, const uint8_t *d, size_t l, struct fault *f) { (void)s,(void)d,(void)l; return fail(f,FAULT_INVALID,0,"x"); }
int files_put (uint16_t s, const uint8_t *d, size_t l, struct fault *f) { (void)s,(void)d,(void)l; return fail(f,FAULT_INVALID,0,"x"); }
int files_changes (uint16_t s, const uint8_t *d, size_t l, struct fault *f) { (void)s,(void)d,(void)l; return fail(f,FAULT_INVALID,0,"x"); }
