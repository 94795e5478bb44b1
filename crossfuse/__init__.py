# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
The console command `crossfuse`. It parses arguments and gives help before it imports PyTorch, transformers or
`modeling_crossfuse`: a program imports those, and the modules here that need them, inside of functions.
"""
