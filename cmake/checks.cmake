# SPDX-License-Identifier: Apache-2.0
# Targets `format-check`, `tidy` and `cppcheck`; each fails on a finding.
find_program(CLANG_FORMAT NAMES clang-format-14 clang-format)
find_program(CLANG_TIDY NAMES clang-tidy-14 clang-tidy)
find_program(CPPCHECK NAMES cppcheck)

file(GLOB_RECURSE PLATTER_C_FILES CONFIGURE_DEPENDS
    common/*.[ch] backends/*.[ch] provisioner/*.[ch] csi-adapter/*.[ch] tests/*.[ch])
set(PLATTER_C_SOURCES ${PLATTER_C_FILES})
list(FILTER PLATTER_C_SOURCES INCLUDE REGEX "/(common|backends|provisioner|csi-adapter)/.*\\.c$")

if(CLANG_FORMAT)
    add_custom_target(format COMMAND ${CLANG_FORMAT} -i ${PLATTER_C_FILES})
    add_custom_target(format-check COMMAND ${CLANG_FORMAT} --dry-run -Werror ${PLATTER_C_FILES})
endif()
# One file a run: with several, clang-tidy 14 takes every va_list but the first for uninitialized.
if(CLANG_TIDY)
    add_custom_target(tidy COMMAND printf "%s\\n" ${PLATTER_C_SOURCES} | xargs -P 2 -n 1
        ${CLANG_TIDY} --quiet --extra-arg=-Wno-unknown-warning-option -p ${CMAKE_BINARY_DIR} VERBATIM)
endif()
if(CPPCHECK)
    add_custom_target(cppcheck COMMAND ${CPPCHECK} --quiet --error-exitcode=1 --inline-suppr
        --enable=warning,performance,portability --std=c11 -j 2
        --suppressions-list=${PROJECT_SOURCE_DIR}/.cppcheck-suppressions
        --library=${PROJECT_SOURCE_DIR}/cmake/cppcheck.cfg
        -I ${PROJECT_SOURCE_DIR} -D_GNU_SOURCE ${PLATTER_C_SOURCES})
endif()
