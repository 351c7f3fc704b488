"""Compiling a program in the background, while another is compiled or runs."""

import concurrent.futures
from typing import Any

import jax

_compiler = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="psa_jax_compile")


def compile_ahead(function: Any, *args: Any, **static: Any) -> concurrent.futures.Future:
    """Traces a jitted function here and now and compiles it in another thread; a later call finds it compiled.

    Args:
        function: what `jax.jit` returned.
        args: its arguments, or `jax.ShapeDtypeStruct`s in place of arrays.
        static: its static arguments, by name.

    Returns:
        To be waited for before the call (`ready`), which would compile the same once more.

    Example:
        >>> import jax.numpy as jnp
        >>> double = jax.jit(lambda x: 2 * x)
        >>> ready(compile_ahead(double, jax.ShapeDtypeStruct((3,), jnp.float32)))
        >>> double(jnp.ones(3)).tolist()
        [2.0, 2.0, 2.0]
    """
    config: Any = jax.config
    if config.jax_disable_jit:
        done: concurrent.futures.Future = concurrent.futures.Future()
        done.set_result(None)
        return done
    return _compiler.submit(function.lower(*args, **static).compile)


def ready(program: concurrent.futures.Future) -> None:
    """Waits until a program is compiled; if that failed, its call will say why."""
    concurrent.futures.wait([program])
